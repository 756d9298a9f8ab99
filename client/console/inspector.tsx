// One event's JSON, indented or exactly as it arrived.

import { useMemo, useState } from "react";
import { oneLine, parseExact, pretty, visible } from "../src/text.js";
import { Code } from "./code.js";
import type { Entry } from "./log.js";
import { CopyButton } from "./notice.js";
import { useTexts } from "./texts.js";
import { clock } from "./time.js";

const DRAWN = 100_000; // characters; a longer text is slow to lay out, and the copy has it whole

interface Props {
  readonly entry: Entry;
  /** Choose the row before (-1) or after (1) it. */
  readonly onMove: (by: -1 | 1) => void;
  readonly onClose: () => void;
}

export function Inspector({ entry, onMove, onClose }: Props) {
  const texts = useTexts();
  const [indented, setIndented] = useState(true);
  const type = oneLine(entry.type, 60); // a later service may know more of them
  const text = useMemo(() => (indented ? indent(entry.raw) : visible(entry.raw)), [entry, indented]);
  return (
    <section className="inspector" aria-labelledby="inspector-title">
      <div className="bar">
        <h3 id="inspector-title">{type}</h3>
        <span className="muted">{`${texts.id} ${entry.id ?? texts.snapshot} · ${texts.received} ${clock(entry.at)}`}</span>
      </div>
      <div className="buttons">
        <CopyButton text={() => entry.raw}>{texts.copyJson}</CopyButton>
        <button type="button" className="small" aria-pressed={!indented} onClick={() => setIndented(!indented)}>
          {texts.exact}
        </button>
        <button type="button" className="small" aria-label={texts.previous} onClick={() => onMove(-1)}>
          ↑
        </button>
        <button type="button" className="small" aria-label={texts.next} onClick={() => onMove(1)}>
          ↓
        </button>
        <button type="button" className="small" onClick={onClose}>
          {texts.close}
        </button>
      </div>
      <Code label={`JSON: ${type}`} text={text.slice(0, DRAWN)} />
      {text.length > DRAWN && <p className="muted">{texts.more(text.length - DRAWN)}</p>}
    </section>
  );
}

function indent(raw: string): string {
  try {
    return pretty(parseExact(raw));
  } catch {
    return visible(raw); // no JSON: shown as it came
  }
}
