// The shapes of what a session's events add up to, as `session.ts` makes them. Types only.

import type { RiskLevel, Status } from "./events.js";
import type { ReceivedEvent } from "./types.js";

/** How a call ended for its caller. */
export interface CallResult {
  readonly success: boolean;
  readonly value: unknown;
  readonly error: string | null;
  readonly durationMs: number | null;
}

export interface CallProgress {
  readonly done: number;
  /** Null where the end is not known. */
  readonly total: number | null;
  readonly message: string;
}

/** One tool call. Times are Unix milliseconds on the service's clock. */
export interface ToolCall {
  readonly id: string;
  readonly tool: string;
  readonly status: Status;
  readonly risk: RiskLevel | null;
  readonly server: string | null;
  /** With every digit, see `parseExact`; after an edit the edited ones. */
  readonly parameters: unknown;
  /** What the agent had asked for, where the user edited it. */
  readonly originalParameters: unknown;
  readonly progress: CallProgress | null;
  readonly result: CallResult | null;
  readonly startedAt: number | null;
  readonly endedAt: number | null;
  /** The call this one is part of. */
  readonly parentId: string | null;
  readonly cancellable: boolean;
}

/** A permission request that waits for an answer. */
export interface OpenRequest {
  readonly id: string;
  readonly callId: string;
  readonly tool: string;
  readonly server: string | null;
  readonly risk: RiskLevel;
  /** With every digit, see `parseExact`. */
  readonly parameters: unknown;
  readonly message: string | null;
  /** Unix milliseconds on the service's clock; null when the service did not say. */
  readonly expiresAt: number | null;
  readonly editable: boolean;
  readonly scopes: readonly ("once" | "session")[];
  /** JSON pointers of what is hidden in `parameters`. */
  readonly masked: readonly string[];
  /** `parameters` were too large and are cut; `digest` is the SHA-256 of all of them. */
  readonly truncated: boolean;
  readonly digest: string | null;
}

/** What became of a request. */
export interface Outcome {
  readonly requestId: string;
  readonly tool: string;
  readonly outcome: string;
  readonly reason: string | null;
  readonly resolvedBy: string | null;
  readonly edited: boolean;
  /** Unix milliseconds on the service's clock. */
  readonly at: number | null;
}

export interface SessionView {
  /** By call id, oldest first. */
  readonly calls: ReadonlyMap<string, ToolCall>;
  /** Oldest first, at most 1000 of them. */
  readonly requests: readonly OpenRequest[];
  /** The last ones, newest last. */
  readonly outcomes: readonly Outcome[];
  /** Ids of settled requests: a repeat that crossed the clearing must not bring its card back. */
  readonly settled: ReadonlySet<string>;
  readonly error: { readonly code: string; readonly message: string } | null;
  /** Why the history has a gap and the view began anew, if it did. */
  readonly reset: string | null;
  readonly closed: boolean;
  /** Events so far, heartbeats not counted. */
  readonly count: number;
  readonly lastEvent: ReceivedEvent | null;
  /** When the last heartbeat came, Unix milliseconds on this computer's clock. */
  readonly heartbeatAt: number | null;
  /** Service's clock less this computer's, milliseconds, by the last heartbeats; the least delayed one counts. */
  readonly clockOffset: number;
  readonly offsets: readonly number[];
}
