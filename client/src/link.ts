// What a connection works with: shared by the modules that keep it. No logic but waiting and aborting.

import type { Http } from "./http.js";
import type { Inbox } from "./inbox.js";
import type { ClientOptions, ConnectionState, ReceivedEvent } from "./types.js";

/** One client's parts. */
export interface Link {
  readonly http: Http;
  /** The session's id, encoded for a path. */
  readonly session: string;
  readonly options: ClientOptions;
  readonly inbox: Inbox;
  state: ConnectionState;
  /** The heartbeat interval, milliseconds. */
  beat: number;
  /** Ends the present wait, if there is one. */
  wake?: (value?: unknown) => void;
  /** The network is gone: ends the present stream, if there is one. */
  drop?: () => void;
  set(change: Partial<ConnectionState>): void;
  /** Tells other tabs of an event, or of the state; there while this tab leads. */
  relay?: ((event?: Partial<ReceivedEvent>, previous?: string | null) => void) | undefined;
}

/** Something that can be ended, and that ends with what is around it. */
export interface Scope {
  readonly signal: AbortSignal;
  end(reason?: unknown): void;
}

/** Return a scope within `outer`, which ends when that one is aborted. */
export function within(outer: AbortSignal): Scope {
  const inner = new AbortController();
  return { signal: AbortSignal.any([outer, inner.signal]), end: (reason) => inner.abort(reason) };
}
