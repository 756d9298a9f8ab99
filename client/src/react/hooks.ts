// The hooks: a session's state and what can be done about it. Same arguments share one client, see `store.ts`.

import { useCallback, useEffect, useMemo, useState, useSyncExternalStore } from "react";
import type { SSEClient } from "../index.js";
import type { Answer, AnswerResult, ClientOptions, ConnectionState, ReceivedEvent } from "../types.js";
import type { OpenRequest, SessionView, ToolCall } from "../view.js";
import { NOTHING, type SessionStore, sessionStore } from "./store.js";

/** What {@link useAgentSession} gives. */
export interface AgentSession {
  readonly client: SSEClient;
  readonly session: SessionView;
  readonly connection: ConnectionState;
  /** Ids of the requests whose answer is on its way. */
  readonly pending: ReadonlySet<string>;
  /** Answer a request; rejects with `AgentSSEError` when the service did not record it. */
  readonly answer: (requestId: string, answer: Answer) => Promise<AnswerResult>;
  /** Approve a request, this time only. */
  readonly approve: (requestId: string, reason?: string) => Promise<AnswerResult>;
  /** Deny a request, this time only. */
  readonly deny: (requestId: string, reason?: string) => Promise<AnswerResult>;
  /** Ask the agent to stop a call; rejects with `AgentSSEError`. */
  readonly cancel: (callId: string, reason?: string) => Promise<{ tool_call_id: string; status: string }>;
  /** Connect at once, also after the end; of a session that was closed and may be open again, with an empty view. */
  readonly reconnect: () => void;
  /** Put away the session's last error. */
  readonly dismiss: () => void;
}

/**
 * Follow a session: connect with the first component that uses it, disconnect after the last.
 *
 * A renewed `token` of the same subject keeps the connection and the view. `options` count when the client is made;
 * only `tokenProvider` may change later. Keep `tokenProvider` a stable function, or give none.
 */
export function useAgentSession(sessionId: string, token: string, options: ClientOptions = {}): AgentSession {
  const store = useStore(sessionId, token, options);
  const shared = useSyncExternalStore(store.subscribe, store.snapshot, () => NOTHING);
  const actions = useMemo(() => actionsOf(store), [store]);
  return { ...actions, ...shared };
}

/** Follow a session's tool calls, oldest first, and its last event (heartbeats aside). */
export function useToolEvents(
  sessionId: string,
  token: string,
  options: ClientOptions = {},
): { calls: readonly ToolCall[]; lastEvent: ReceivedEvent | null; connection: ConnectionState } {
  const { session, connection } = useAgentSession(sessionId, token, options);
  const calls = useMemo(() => [...session.calls.values()], [session.calls]);
  return { calls, lastEvent: session.lastEvent, connection };
}

/** What {@link usePermissionRequests} gives. */
export interface PermissionRequests {
  /** Oldest first. */
  readonly requests: readonly OpenRequest[];
  /** Answer a request: true when the service recorded it; else false, and `error` says why. Never rejects. */
  readonly answer: (requestId: string, answer: Answer) => Promise<boolean>;
  readonly pending: ReadonlySet<string>;
  /** Why the last answer was not recorded. */
  readonly error: Error | null;
}

/** Follow a session's open permission requests, and answer them. */
export function usePermissionRequests(
  sessionId: string,
  token: string,
  options: ClientOptions = {},
): PermissionRequests {
  const { session, pending, answer: send } = useAgentSession(sessionId, token, options);
  const [error, setError] = useState<Error | null>(null);
  const answer = useCallback(
    async (requestId: string, given: Answer) => {
      setError(null);
      try {
        await send(requestId, given);
        return true;
      } catch (reason) {
        setError(reason instanceof Error ? reason : new Error(String(reason)));
        return false;
      }
    },
    [send],
  );
  return { requests: session.requests, answer, pending, error };
}

function useStore(sessionId: string, token: string, options: ClientOptions): SessionStore {
  const { baseUrl, tokenProvider } = options;
  // biome-ignore lint/correctness/useExhaustiveDependencies: the other options count when the client is made
  const store = useMemo(() => sessionStore(sessionId, token, options), [sessionId, token, baseUrl]);
  useEffect(() => store.renew(token, tokenProvider), [store, token, tokenProvider]);
  return store;
}

function actionsOf(store: SessionStore): Omit<AgentSession, "session" | "connection" | "pending"> {
  const answer = (requestId: string, given: Answer) => store.answer(requestId, given);
  const plain = (approved: boolean) => (requestId: string, reason?: string) =>
    answer(requestId, reason === undefined ? { approved } : { approved, reason });
  return {
    client: store.client,
    answer,
    approve: plain(true),
    deny: plain(false),
    cancel: (callId, reason) => store.client.cancelCall(callId, reason),
    reconnect: () => store.reconnect(),
    dismiss: () => store.dismiss(),
  };
}
