// The timeline: a row for each tool call with its status, its time and a bar of it, newest first.

import { memo, useMemo, useState } from "react";
import { riskText } from "../src/react/badge.js";
import { useLanguage } from "../src/react/language.js";
import { messages } from "../src/react/messages.js";
import { durationMs, isEnded, serviceNow } from "../src/session.js";
import { cut, oneLine, pretty, visible } from "../src/text.js";
import type { ToolCall } from "../src/view.js";
import { Code } from "./code.js";
import type { Follower } from "./follower.js";
import { useNow, useShared } from "./hooks.js";
import { CopyButton, useSay } from "./notice.js";
import { useStatusText, useTexts } from "./texts.js";
import { barOf, clock, duration } from "./time.js";

const LONGEST_WINDOW = 5 * 60_000; // milliseconds; what is older has no bar
const SHOWN_TEXT = 20_000; // characters of parameters and result in a row; the event has all of them

interface Props {
  readonly follower: Follower;
  /** Show the events of a call. */
  readonly onShowEvents: (call: ToolCall) => void;
  readonly cancelCommand: (callId: string) => string;
}

interface Span {
  readonly from: number;
  readonly to: number;
}

export function Calls({ follower, onShowEvents, cancelCommand }: Props) {
  const texts = useTexts();
  const { session: view } = useShared(follower);
  const calls = useMemo(() => [...view.calls.values()].reverse(), [view.calls]);
  const running = calls.some((call) => !isEnded(call));
  const now = serviceNow(view, useNow(running));
  const { from, to } = spanOf(calls, running ? now : null);
  const span = useMemo(() => ({ from, to }), [from, to]); // the same until it moves: rows are drawn for nothing else
  return (
    <section aria-labelledby="calls-title">
      <h3 id="calls-title">
        {texts.calls} <span className="muted">{calls.length || ""}</span>
      </h3>
      {calls.length === 0 && <p className="muted">{texts.noCalls}</p>}
      <ol className="calls">
        {calls.map((call) => (
          <CallRow
            key={call.id}
            call={call}
            // What is over does not change with the clock: its row is not drawn anew each second.
            now={isEnded(call) ? (call.endedAt ?? 0) : now}
            span={span}
            follower={follower}
            onShowEvents={onShowEvents}
            cancelCommand={cancelCommand}
          />
        ))}
      </ol>
    </section>
  );
}

/** The time that the bars show: up to now or the last end, from the first start in the minutes before. */
export function spanOf(calls: readonly ToolCall[], now: number | null): Span {
  const to = now ?? Math.max(0, ...calls.map((call) => call.endedAt ?? call.startedAt ?? 0));
  const starts = calls.map((call) => call.startedAt ?? to).filter((start) => start >= to - LONGEST_WINDOW);
  const oldest = calls.some(
    (call) => call.startedAt !== null && call.startedAt < to - LONGEST_WINDOW && !isEnded(call),
  );
  return { from: oldest ? to - LONGEST_WINDOW : Math.min(to - 1, ...starts), to };
}

interface RowProps extends Props {
  readonly call: ToolCall;
  readonly now: number;
  readonly span: Span;
}

const CallRow = memo(function CallRow({ call, now, span, follower, onShowEvents, cancelCommand }: RowProps) {
  const texts = useTexts();
  const statusText = useStatusText();
  const [open, setOpen] = useState(false);
  const tool = cut(visible(call.tool), 200);
  const took = durationMs(call, now);
  const ended = isEnded(call);
  return (
    <li className="call" data-status={call.status} data-call={call.id}>
      <div className="call-head">
        <button type="button" className="call-name" aria-expanded={open} onClick={() => setOpen(!open)}>
          <span className="tool">{tool}</span>
          {call.server && <span className="muted">{cut(visible(call.server), 80)}</span>}
        </button>
        <span className="tag" data-tone={call.status}>
          {cut(statusText(call.status), 40)}
        </span>
        <span className="took">{took === null ? "" : duration(took)}</span>
        {!ended && call.cancellable && <CancelButton call={call} follower={follower} />}
      </div>
      <Bar call={call} now={now} span={span} />
      {!ended && call.progress && <Progress call={call} />}
      {!open && call.result?.error && <p className="call-error">{oneLine(call.result.error)}</p>}
      {open && (
        <div className="call-more">
          <Facts call={call} />
          <div className="buttons">
            <button type="button" className="small" onClick={() => onShowEvents(call)}>
              {texts.showEvents}
            </button>
            {!ended && (
              <CopyButton text={() => cancelCommand(call.id)}>{`${texts.copyCurl}: ${texts.cancel}`}</CopyButton>
            )}
          </div>
        </div>
      )}
    </li>
  );
});

function Bar({ call, now, span }: { call: ToolCall; now: number; span: Span }) {
  const place = call.startedAt === null ? null : barOf(call.startedAt, call.endedAt ?? now, span);
  return (
    <div className="track" aria-hidden="true">
      {place && <div className="bar-time" style={{ left: `${place.left}%`, width: `${place.width}%` }} />}
    </div>
  );
}

function Progress({ call }: { call: ToolCall }) {
  if (call.progress === null) return null;
  const { done, total, message } = call.progress;
  const bounds = total === null ? {} : { max: total, value: Math.min(Math.max(0, done), total) };
  return (
    <div className="call-progress">
      <progress aria-label={cut(visible(call.tool), 200)} {...bounds} />
      <span className="muted">
        {[total === null ? `${done}` : `${done} / ${total}`, message].filter(Boolean).join(" · ")}
      </span>
    </div>
  );
}

function CancelButton({ call, follower }: { call: ToolCall; follower: Follower }) {
  const texts = useTexts();
  const say = useSay();
  const [busy, setBusy] = useState(false);
  const cancel = async () => {
    if (busy) return;
    setBusy(true);
    try {
      const { status } = await follower.cancelCall(call.id);
      say(status === "withdrawn" ? texts.withdrawn : texts.cancelling);
    } catch (error) {
      say(texts.failed((error as Error).message));
      setBusy(false);
    }
  };
  return (
    <button
      type="button"
      className="small"
      aria-disabled={busy}
      onClick={cancel}
      aria-label={texts.cancelCall(visible(call.tool))}
    >
      {texts.cancel}
    </button>
  );
}

function Facts({ call }: { call: ToolCall }) {
  const texts = useTexts();
  const language = useLanguage();
  const facts = [
    ["id", call.id],
    ["", call.risk && riskText(call.risk, messages[language])],
    [texts.began, call.startedAt === null ? null : clock(call.startedAt)],
    ["", call.parentId && texts.partOf(call.parentId)],
  ].filter(([, value]) => value);
  return (
    <>
      <p className="muted">{facts.map(([name, value]) => cut(visible(`${name} ${value}`.trim()), 300)).join(" · ")}</p>
      <Value title={texts.parameters} value={call.parameters} tool={call.tool} />
      <Value title={texts.asked} value={call.originalParameters} tool={call.tool} />
      {call.result?.error && <p className="call-error">{cut(visible(call.result.error), 2000)}</p>}
      <Value title={texts.result} value={call.result?.value} tool={call.tool} />
    </>
  );
}

function Value({ title, value, tool }: { title: string; value: unknown; tool: string }) {
  if (value === undefined || value === null) return null;
  return (
    <>
      <h4>{title}</h4>
      <Code
        label={`${title}: ${cut(visible(tool), 200)}`}
        text={cut(typeof value === "string" ? visible(value) : pretty(value), SHOWN_TEXT)}
      />
    </>
  );
}
