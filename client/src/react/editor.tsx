// Editing a request's parameters: a JSON text, what is wrong with it, and the lines that change.

import { type KeyboardEvent, type ReactNode, useEffect, useId, useMemo, useRef } from "react";
import { cut, pretty, visible } from "../text.js";
import { type DiffLine, diffLines } from "./diff.js";
import type { Messages } from "./messages.js";
import { type Edit, type EditProblem, isChanged } from "./patch.js";
import { Scroll } from "./scroll.js";

export interface EditorProps {
  tool: string;
  base: unknown;
  text: string;
  edit: Edit;
  texts: Messages;
  onChange: (text: string) => void;
  onLeave: () => void;
}

/** The editor; Escape leaves it. */
export function Editor({ tool, base, text, edit, texts, onChange, onLeave }: EditorProps): ReactNode {
  const field = useRef<HTMLTextAreaElement>(null);
  const problem = useId();
  const hint = useId();
  useEffect(() => field.current?.focus(), []);
  const onKeyDown = (event: KeyboardEvent) => {
    if (event.key !== "Escape" || event.nativeEvent.isComposing) return; // an input method uses Escape, too
    event.stopPropagation();
    onLeave();
  };
  return (
    <div className="agent-sse-editor">
      <textarea
        ref={field}
        className="agent-sse-json"
        aria-label={texts.editorLabel(visible(tool))}
        aria-invalid={!edit.ok}
        aria-describedby={`${hint} ${problem}`}
        rows={Math.min(20, Math.max(4, text.split("\n").length + 1))}
        spellCheck={false}
        autoComplete="off"
        autoCapitalize="off"
        value={text}
        onChange={(event) => onChange(event.target.value)}
        onKeyDown={onKeyDown}
      />
      <p id={hint} className="agent-sse-muted">
        {texts.editOnce}
      </p>
      <p id={problem} className="agent-sse-problem">
        {edit.ok ? "" : problemText(edit.problem, texts)}
      </p>
      {edit.ok && !isChanged(edit) && <p className="agent-sse-muted">{texts.unchanged}</p>}
      {edit.ok && isChanged(edit) && <Changes base={base} value={edit.value} texts={texts} />}
    </div>
  );
}

function Changes({ base, value, texts }: { base: unknown; value: unknown; texts: Messages }): ReactNode {
  const lines = useMemo(() => diffLines(pretty(base), pretty(value)), [base, value]);
  return (
    <figure className="agent-sse-diff">
      <figcaption>{texts.changes}</figcaption>
      <Scroll label={texts.changes} texts={texts}>
        {lines.map((line, at) => (
          // biome-ignore lint/suspicious/noArrayIndexKey: lines have no identity but their place
          <Line key={at} line={line} texts={texts} />
        ))}
      </Scroll>
    </figure>
  );
}

const MARKS = { same: " ", added: "+", removed: "−" } as const;

function Line({ line, texts }: { line: DiffLine; texts: Messages }): ReactNode {
  if (line.kind === "skipped")
    return <div className="agent-sse-line agent-sse-muted">… {texts.skipped(line.count)}</div>;
  const spoken = line.kind === "same" ? "" : `${texts[line.kind]}: `;
  return (
    <div className="agent-sse-line" data-change={line.kind}>
      <span className="agent-sse-unseen">{spoken}</span>
      <span aria-hidden="true">{MARKS[line.kind]} </span>
      {line.text}
    </div>
  );
}

/** Why an edit cannot be sent, in words. */
export function problemText(problem: EditProblem, texts: Messages): string {
  switch (problem.kind) {
    case "syntax":
      return texts.badJson(visible(problem.detail));
    case "not_object":
      return texts.notObject;
    case "too_deep":
      return texts.tooDeep;
    case "null":
      return texts.nullValue(visible(problem.pointer));
    case "inexact":
      return texts.inexact(cut(problem.number, 100));
  }
}
