// The whole of a session on a page: connection, open requests, last decisions and tool calls.

import { type ReactNode, useCallback, useEffect, useId, useMemo, useRef } from "react";
import { oneLine, visible } from "../text.js";
import type { Answer, AnswerResult, ClientOptions } from "../types.js";
import type { OpenRequest, Outcome, SessionView, ToolCall } from "../view.js";
import { AnnouncerContext, useAnnouncer } from "./announcer.js";
import { arranged } from "./arranged.js";
import { ConnectionBadge, riskText } from "./badge.js";
import { ToolCallCard } from "./call-card.js";
import { type AgentSession, useAgentSession } from "./hooks.js";
import { LanguageContext, useLanguage } from "./language.js";
import { type Language, type Messages, messages } from "./messages.js";
import { PermissionCard, SHOWN_REQUESTS } from "./permission-card.js";
import { useRequestFocus } from "./steady.js";

/** A request that was answered here, and the decision that stands. */
export interface Decision {
  readonly request: OpenRequest;
  readonly answer: Answer;
  readonly result: AnswerResult;
}

export interface MCPToolMonitorProps {
  sessionId: string;
  token: string;
  /** The service's address up to and with its prefix. Default: `/agent_backend/api/sse`. */
  baseUrl?: string | undefined;
  tokenProvider?: (() => Promise<string>) | undefined;
  /** Further options of the client; they count when the first component of the session is mounted. */
  options?: ClientOptions | undefined;
  /** Default: the browser's, Chinese or else English. */
  language?: Language | undefined;
  /** Default: what the system says. */
  theme?: "light" | "dark" | undefined;
  className?: string | undefined;
  /** How many tool calls are shown, the newest. Default 50. */
  maxCalls?: number | undefined;
  /** Whether the focus moves to a request that comes, unless the user is writing. Default true. */
  moveFocus?: boolean | undefined;
  /** After the service recorded an answer given here. */
  onDecision?: ((decision: Decision) => void) | undefined;
}

/** Shows a session's tool calls and asks for its permissions. See the module's head. */
export function MCPToolMonitor(props: MCPToolMonitorProps): ReactNode {
  const { sessionId, token, theme, className, maxCalls = 50, moveFocus = true } = props;
  const agent = useAgentSession(sessionId, token, useOptions(props));
  const { session, connection } = agent;
  const language = useLanguage(props.language);
  const texts = messages[language];
  const { announce, regions } = useAnnouncer();
  useNews(session, texts, announce);
  const classes = ["agent-sse-monitor", "mcp-tool-monitor", className].filter(Boolean).join(" ");
  return (
    <LanguageContext.Provider value={language}>
      <AnnouncerContext.Provider value={announce}>
        <section
          className={classes}
          aria-label={texts.monitor}
          lang={language === "zh" ? "zh-CN" : "en"}
          data-theme={theme}
        >
          {regions}
          <ConnectionBadge connection={connection} heartbeatAt={session.heartbeatAt} onReconnect={agent.reconnect} />
          <Problem session={session} onDismiss={agent.dismiss} texts={texts} />
          <Requests agent={agent} texts={texts} moveFocus={moveFocus} onDecision={props.onDecision} />
          <Outcomes outcomes={session.outcomes} texts={texts} />
          <Calls session={session} maxCalls={maxCalls} onCancel={agent.cancel} texts={texts} />
        </section>
      </AnnouncerContext.Provider>
    </LanguageContext.Provider>
  );
}

function useOptions({ baseUrl, tokenProvider, options }: MCPToolMonitorProps): ClientOptions {
  return useMemo(() => {
    const given: ClientOptions = { ...options };
    if (baseUrl !== undefined) given.baseUrl = baseUrl;
    if (tokenProvider !== undefined) given.tokenProvider = tokenProvider;
    return given;
  }, [options, baseUrl, tokenProvider]);
}

/** Tell of requests that come, at once, and of what becomes of them. */
function useNews(session: SessionView, texts: Messages, announce: (text: string, urgent?: boolean) => void): void {
  const known = useRef<ReadonlySet<string>>(new Set());
  const told = useRef<readonly Outcome[]>([]);
  const { requests, outcomes } = session;
  useEffect(() => {
    const fresh = requests.filter((request) => !known.current.has(request.id));
    known.current = new Set(requests.map((request) => request.id));
    const news = fresh.map((request) => texts.newRequest(oneLine(request.tool, 100), riskText(request.risk, texts)));
    if (news.length > 0) announce(news.join(". "), true);
  }, [requests, texts, announce]);
  useEffect(() => {
    const news = outcomes.filter((outcome) => !told.current.includes(outcome));
    told.current = outcomes;
    if (news.length > 0) announce(news.map((outcome) => outcomeText(outcome, texts)).join(". "));
  }, [outcomes, texts, announce]);
}

interface ProblemProps {
  session: SessionView;
  onDismiss: () => void;
  texts: Messages;
}

function Problem({ session, onDismiss, texts }: ProblemProps): ReactNode {
  const { error, reset, closed } = session;
  if (closed) return <p className="agent-sse-caveat">{texts.sessionClosed}</p>;
  if (error === null && reset === null) return null;
  return (
    <div className="agent-sse-row agent-sse-caveat agent-sse-warning">
      <span role="alert">
        {error === null ? texts.reset : `${texts.serviceError}: ${visible(error.message)} (${visible(error.code)})`}
      </span>
      <button type="button" className="agent-sse-button" onClick={onDismiss}>
        {texts.dismiss}
      </button>
    </div>
  );
}

interface RequestsProps {
  agent: AgentSession;
  texts: Messages;
  moveFocus: boolean;
  onDecision: MCPToolMonitorProps["onDecision"];
}

function Requests({ agent, texts, moveFocus, onDecision }: RequestsProps): ReactNode {
  const { session, pending, answer } = agent;
  const { requests } = session;
  const list = useRef<HTMLElement>(null);
  const heading = useId();
  const shown = useMemo(() => requests.slice(0, SHOWN_REQUESTS), [requests]);
  const ids = useMemo(() => shown.map((request) => request.id), [shown]);
  useRequestFocus(list, ids, moveFocus);
  const onAnswer = useCallback(
    async (requestId: string, given: Answer) => {
      const request = requests.find((one) => one.id === requestId);
      const result = await answer(requestId, given);
      // By itself: what the application throws here is not the service's refusal.
      if (request !== undefined) queueMicrotask(() => onDecision?.({ request, answer: given, result }));
    },
    [requests, answer, onDecision],
  );
  return (
    <section ref={list} className="agent-sse-requests" aria-labelledby={heading}>
      <h3 id={heading} tabIndex={-1} data-heading="">
        {texts.requests}
      </h3>
      {requests.length === 0 && <p className="agent-sse-muted">{texts.noRequests}</p>}
      {shown.map((request, at) => (
        <PermissionCard
          key={request.id}
          request={request}
          position={{ index: at + 1, total: requests.length }}
          pending={pending.has(request.id)}
          clockOffset={session.clockOffset}
          onAnswer={onAnswer}
        />
      ))}
      {requests.length > shown.length && (
        <p className="agent-sse-muted">{texts.moreRequests(requests.length - shown.length)}</p>
      )}
    </section>
  );
}

const OUTCOMES_SHOWN = 5;

function Outcomes({ outcomes, texts }: { outcomes: readonly Outcome[]; texts: Messages }): ReactNode {
  if (outcomes.length === 0) return null;
  return (
    <section className="agent-sse-outcomes" aria-label={texts.outcomes}>
      <h3>{texts.outcomes}</h3>
      <ul>
        {outcomes
          .slice(-OUTCOMES_SHOWN)
          .reverse()
          .map((outcome) => (
            <li key={outcome.requestId} data-outcome={outcome.outcome}>
              {outcomeText(outcome, texts)}
            </li>
          ))}
      </ul>
    </section>
  );
}

function outcomeText(outcome: Outcome, texts: Messages): string {
  const { tool, outcome: kind, edited, resolvedBy, reason } = outcome;
  const word = Object.hasOwn(texts.outcome, kind) ? texts.outcome[kind] : visible(kind);
  const by = resolvedBy !== null && kind !== "refused" && texts.by(oneLine(resolvedBy, 100)); // there the reason says it
  const head = [oneLine(tool, 256), word, edited && texts.withEdits, by];
  return [head.filter(Boolean).join(" "), oneLine(reason)].filter(Boolean).join(" · ");
}

interface CallsProps {
  session: SessionView;
  maxCalls: number;
  onCancel: (callId: string) => Promise<unknown>;
  texts: Messages;
}

function Calls({ session, maxCalls, onCancel, texts }: CallsProps): ReactNode {
  const heading = useId();
  const { calls, clockOffset } = session;
  const rows = useMemo(() => arranged(calls), [calls]);
  const parent = (call: ToolCall) => (call.parentId === null ? undefined : calls.get(call.parentId)?.tool);
  return (
    <section className="agent-sse-calls" aria-labelledby={heading}>
      <h3 id={heading}>{texts.calls}</h3>
      {rows.length === 0 && <p className="agent-sse-muted">{texts.noCalls}</p>}
      {rows.slice(0, maxCalls).map(({ call, depth }) => (
        <ToolCallCard
          key={call.id}
          call={call}
          depth={depth}
          parent={parent(call)}
          clockOffset={clockOffset}
          onCancel={onCancel}
        />
      ))}
      {rows.length > maxCalls && <p className="agent-sse-muted">{texts.olderCalls(rows.length - maxCalls)}</p>}
    </section>
  );
}
