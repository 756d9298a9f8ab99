// One tool call: its status, risk, parameters, progress, result and the button that cancels it.

import { memo, type ReactNode, useId, useState } from "react";
import { durationMs, isEnded } from "../session.js";
import { cut, oneLine, pretty, visible } from "../text.js";
import type { CallProgress, CallResult, ToolCall } from "../view.js";
import { RiskBadge, StatusBadge } from "./badge.js";
import { duration, useNow } from "./clock.js";
import { useMessages } from "./language.js";
import type { Language, Messages } from "./messages.js";
import { Scroll } from "./scroll.js";

const SHOWN = 20_000; // characters of one value; nothing is approved here

export interface ToolCallCardProps {
  call: ToolCall;
  /** Name of the tool whose call this one is part of. */
  parent?: string | undefined;
  /** Levels below the outermost call; indents. */
  depth?: number | undefined;
  /** Service's clock less this computer's, milliseconds. */
  clockOffset?: number | undefined;
  /** Shows a cancel button where the call takes it; a rejection's message is shown. */
  onCancel?: ((callId: string) => Promise<unknown>) | undefined;
  language?: Language | undefined;
}

/** See the module's head. Renders anew only when its call changes. */
export const ToolCallCard = memo(function ToolCallCard(props: ToolCallCardProps): ReactNode {
  const { call, parent, depth = 0, clockOffset = 0, onCancel, language } = props;
  const texts = useMessages(language);
  const heading = useId();
  const ended = isEnded(call);
  return (
    <article
      className="agent-sse-call tool-status"
      aria-labelledby={heading}
      data-call={call.id}
      data-depth={Math.min(depth, 3)}
    >
      <header className="agent-sse-row">
        <h4 id={heading} className="agent-sse-tool">
          {cut(visible(call.tool), 256)}
        </h4>
        <StatusBadge status={call.status} language={language} />
        {call.risk !== null && <RiskBadge risk={call.risk} language={language} />}
        <Took call={call} clockOffset={clockOffset} texts={texts} />
        {!ended && call.cancellable && onCancel !== undefined && (
          <Cancel call={call} onCancel={onCancel} texts={texts} />
        )}
      </header>
      <Origin call={call} parent={parent} texts={texts} />
      {!ended && call.progress !== null && <Progress tool={call.tool} progress={call.progress} texts={texts} />}
      <Parameters call={call} texts={texts} />
      {call.result !== null && <Result result={call.result} texts={texts} />}
    </article>
  );
});

function Took({ call, clockOffset, texts }: { call: ToolCall; clockOffset: number; texts: Messages }): ReactNode {
  const now = useNow(!isEnded(call));
  const took = durationMs(call, now + clockOffset);
  if (took === null) return null;
  return (
    <span className="agent-sse-muted" title={texts.duration}>
      {duration(took, texts)}
    </span>
  );
}

function Origin({ call, parent, texts }: { call: ToolCall; parent: string | undefined; texts: Messages }): ReactNode {
  const from = call.parentId === null ? "" : texts.partOf(oneLine(parent ?? call.parentId, 256));
  const server = call.server === null ? "" : `${texts.server}: ${oneLine(call.server, 256)}`;
  const line = [server, from].filter(Boolean).join(" · ");
  return line === "" ? null : <p className="agent-sse-muted">{line}</p>;
}

function Progress({ tool, progress, texts }: { tool: string; progress: CallProgress; texts: Messages }): ReactNode {
  const { done, total, message } = progress;
  const count = texts.progress(String(done), total === null ? null : String(total));
  const value = total === null ? {} : { max: total, value: Math.min(Math.max(done, 0), total) };
  return (
    <div className="agent-sse-progress">
      <progress {...value} aria-label={texts.progressOf(visible(tool))} />
      <span className="agent-sse-muted">{[count, message].filter(Boolean).join(" · ")}</span>
    </div>
  );
}

function Parameters({ call, texts }: { call: ToolCall; texts: Messages }): ReactNode {
  const { parameters, originalParameters } = call;
  if (parameters === undefined || parameters === null) return null;
  return (
    <Foldable summary={texts.parameters} line={oneLine(parameters, 120)} value={parameters}>
      {originalParameters !== undefined && (
        <>
          <p className="agent-sse-muted">{texts.originalParameters}</p>
          <Code value={originalParameters} label={texts.originalParameters} />
        </>
      )}
    </Foldable>
  );
}

function Result({ result, texts }: { result: CallResult; texts: Messages }): ReactNode {
  const { success, value, error } = result;
  return (
    <div className="agent-sse-result" data-success={success}>
      <p>
        <strong>{success ? texts.success : texts.noSuccess}</strong>
        {error !== null && <> · {cut(visible(error), 2000)}</>}
      </p>
      {value !== undefined && value !== null && (
        <Foldable summary={texts.result} line={oneLine(value, 120)} value={value} />
      )}
    </div>
  );
}

interface FoldableProps {
  summary: string;
  line: string;
  value: unknown;
  children?: ReactNode;
}

// A closed one makes no JSON: a hundred calls with large results would cost it at each change.
function Foldable({ summary, line, value, children }: FoldableProps): ReactNode {
  const [open, setOpen] = useState(false);
  return (
    <details className="agent-sse-fold" onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>
        {summary} {!open && <code className="agent-sse-muted">{line}</code>}
      </summary>
      {open && <Code value={value} label={summary} />}
      {open && children}
    </details>
  );
}

function Code({ value, label }: { value: unknown; label: string }): ReactNode {
  return (
    <Scroll label={label}>
      <pre className="agent-sse-json">{cut(pretty(value), SHOWN)}</pre>
    </Scroll>
  );
}

interface CancelProps {
  call: ToolCall;
  onCancel: (callId: string) => Promise<unknown>;
  texts: Messages;
}

function Cancel({ call, onCancel, texts }: CancelProps): ReactNode {
  const [state, setState] = useState<"ready" | "sent" | Error>("ready");
  const press = async () => {
    if (state === "sent") return;
    setState("sent");
    try {
      await onCancel(call.id);
    } catch (error) {
      setState(error instanceof Error ? error : new Error(String(error)));
    }
  };
  return (
    <>
      <button
        type="button"
        className="agent-sse-button"
        aria-label={texts.cancelTool(visible(call.tool))}
        aria-disabled={state === "sent"}
        onClick={press}
      >
        {state === "sent" ? texts.cancelling : texts.cancel}
      </button>
      {state instanceof Error && <span role="alert">{texts.notCancelled(visible(state.message))}</span>}
    </>
  );
}
