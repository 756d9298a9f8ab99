// The public types beside the events; those are generated, see events.ts.

import type { AgentSSEError } from "./errors.js";
import type { EventData, EventType } from "./events.js";

export type { AgentSSEError, ErrorCode } from "./errors.js";

/** One event as it arrived; its `type` tells what its `data` is. */
export type ReceivedEvent<T extends EventType = EventType> = T extends EventType // for each type its own
  ? {
      /** The Redis Stream id, `"<ms>-<seq>"`; null for what a snapshot or a heartbeat says. */
      readonly id: string | null;
      readonly type: T;
      /** What the event carries; for `heartbeat` and `error`, whose fields stand at the top, those fields. */
      readonly data: EventData[T];
      /** The event's JSON text `{"type", …}` with every digit of large whole numbers, which `data` rounds. */
      readonly raw: string;
    }
  : never;

/** Where the connection stands. */
export type Phase =
  /** `connect()` was not called, or `disconnect()` was. */
  | "idle"
  | "connecting"
  | "open"
  /** Waiting to try again at `retryAt`. */
  | "waiting"
  /** The last attempt failed, and the browser says there is no network; it goes on by itself. */
  | "offline"
  /** Ended for good by `error`, or because the session was closed; `connect()` begins anew. */
  | "ended";

export interface ConnectionState {
  readonly phase: Phase;
  /** How events come: a stream of one's own, long polling, or the connection of another tab. */
  readonly via: "stream" | "poll" | "tab" | null;
  /** Failed attempts in a row. */
  readonly attempt: number;
  /** When the next attempt is made, Unix milliseconds; null while `offline`. */
  readonly retryAt: number | null;
  /** When the last byte arrived, Unix milliseconds. */
  readonly lastByteAt: number | null;
  /** Why the last attempt failed, or why it ended. */
  readonly error: AgentSSEError | null;
}

/** What `on()` listens to beside the types of events. */
export interface ClientEvents {
  /** Every event, in order. */
  event: ReceivedEvent;
  state: ConnectionState;
  /** The connection has ended: with an error, or null after `disconnect()`. */
  end: AgentSSEError | null;
}

export interface ClientOptions {
  /** The service's address up to and with its prefix, without a slash at the end. Default: `/agent_backend/api/sse`. */
  baseUrl?: string;
  /** Returns a token whenever one is needed: at first, and when the service refused the one before. */
  tokenProvider?: () => Promise<string>;
  /** `"fetch"` (default): the token goes in a header. `"eventsource"`: the browser's own `EventSource`, with a single-use ticket in the URL. */
  transport?: "fetch" | "eventsource";
  /** Go on after this event id. Default: a snapshot of the present state. */
  lastEventId?: string;
  /** Failed attempts before it ends, counted until it was open for a minute in all. Default 10. */
  maxReconnectAttempts?: number;
  /** Base and cap of the exponential backoff, milliseconds. Default 1000 and 30000. */
  reconnectDelay?: number;
  maxReconnectDelay?: number;
  /** Reconnect after two of these without a byte, milliseconds. Default: what the service says, else 15000; not to be less than that. */
  heartbeatInterval?: number;
  /** How long the first byte may take before long polling is tried, milliseconds. Default 5000. */
  streamTimeout?: number;
  /** How long after it was given up the stream is tried again, milliseconds; doubles to ten times as much. Default 30000. */
  streamRetry?: number;
  /** One connection for all tabs of this session and subject. Default true. */
  shareTabs?: boolean;
}

/** An answer to a permission request (docs/permissions.md). */
export interface Answer {
  approved: boolean;
  reason?: string;
  /** `"session"` remembers the answer. */
  scope?: "once" | "session";
  /** What a remembered answer covers. */
  covers?: "arguments" | "tool";
  /** Changes of the parameters, JSON Merge Patch (RFC 7396); only where the request is `editable`. */
  parametersPatch?: Record<string, unknown>;
}

/** What the service says to an answer: the decision that stands. */
export interface AnswerResult {
  request_id: string;
  tool_call_id: string;
  tool_name: string;
  approved: boolean;
  reason: string | null;
  status: string;
  resolved_by?: string | null;
  already_resolved?: boolean;
}
