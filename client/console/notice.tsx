// One line that says what a button has done, on screen and to screen readers, and the buttons that need it.

import { createContext, type ReactNode, useCallback, useContext, useEffect, useMemo, useState } from "react";
import { visible } from "../src/text.js";
import { copyText } from "./clipboard.js";
import { useTexts } from "./texts.js";

const SHOWN_MS = 5000;
const Say = createContext<(text: string) => void>(() => {});

/** Say a line for some seconds. */
export function useSay(): (text: string) => void {
  return useContext(Say);
}

/** Gives what is below it a line to say something in. */
export function Notice({ children }: { children: ReactNode }) {
  const [said, setSaid] = useState({ text: "", turn: 0 });
  const say = useCallback((text: string) => setSaid((old) => ({ text, turn: old.turn + 1 })), []);
  useEffect(() => {
    if (!said.text) return;
    const timer = setTimeout(() => setSaid((old) => ({ ...old, text: "" })), SHOWN_MS);
    return () => clearTimeout(timer);
  }, [said]);
  const line = useMemo(() => visible(said.text), [said.text]);
  return (
    <Say value={say}>
      {children}
      <p className="notice" role="status" data-shown={line !== ""}>
        {line}
      </p>
    </Say>
  );
}

/** A button that copies what `text` returns. */
export function CopyButton({ text, children, label }: { text: () => string; children: ReactNode; label?: string }) {
  const say = useSay();
  const texts = useTexts();
  const copy = async () => say((await copyText(text())) ? texts.copied : texts.notCopied);
  return (
    <button type="button" className="small" aria-label={label} onClick={copy}>
      {children}
    </button>
  );
}
