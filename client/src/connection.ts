// One connection kept alive: attempts, backoff, the watchdog, waiting while offline, long polling where streams do not
// get through. Knows nothing of tabs and listeners.

import { AgentSSEError, asError, isFinal } from "./errors.js";
import type { Http } from "./http.js";
import type { Inbox } from "./inbox.js";
import { takePage } from "./poll.js";
import { readEventSource, readStream } from "./stream.js";
import type { ClientOptions, ConnectionState, ReceivedEvent } from "./types.js";

const HEALTHY = 60_000; // ms open after which failures are forgotten
const WAIT = 25; // s that a poll waits for an event
const LONGEST_WAIT = 300; // s of a Retry-After that are honoured
const FOREVER = 2 ** 31 - 1; // ms, the longest that a timer takes

/** What a connection works with. */
export interface Link {
  readonly http: Http;
  /** The session's id, encoded for a path. */
  readonly session: string;
  readonly options: ClientOptions;
  readonly inbox: Inbox;
  readonly state: ConnectionState;
  /** The heartbeat interval, milliseconds. */
  beat: number;
  /** Ends the present wait, if there is one. */
  wake: () => void;
  set(change: Partial<ConnectionState>): void;
  /** Tells other tabs of an event, or of the state; there while this tab leads. */
  relay?: ((event?: ReceivedEvent, previous?: string | null) => void) | undefined;
}

/** Wait `ms`, or until `link.wake()`. Throws the reason when `signal` is aborted. */
export const nap = async (ms: number, signal: AbortSignal, link?: Link): Promise<void> => {
  let timer: ReturnType<typeof setTimeout> | undefined;
  await new Promise<void>((resolve) => {
    timer = setTimeout(resolve, ms);
    if (link) link.wake = resolve;
    signal.onabort = () => resolve();
  });
  clearTimeout(timer);
  signal.throwIfAborted();
};

/** The wait after `attempt` failures, milliseconds: exponential with full jitter, and what the service asked for. */
export const backoff = (attempt: number, base: number, cap: number, { retryAfter }: AgentSSEError): number =>
  Math.random() * Math.min(cap, base * 2 ** (attempt - 1)) + 1000 * Math.min(retryAfter ?? 0, LONGEST_WAIT);

/** Keep connected until `signal` is aborted (rejects with its reason) or for good (rejects with the AgentSSEError). */
export async function keepConnected(link: Link, signal: AbortSignal): Promise<never> {
  const { http, inbox, options, session } = link;
  const { reconnectDelay = 1000, maxReconnectDelay = 30_000, maxReconnectAttempts = 10 } = options;
  const { streamTimeout = 5000, streamRetry = 30_000 } = options;
  let attempt = 0;
  let base = reconnectDelay;
  let gap = streamRetry; // until a stream is tried beside polling
  let polling: AbortController | undefined;
  let pollError: unknown;
  let healthy: ReturnType<typeof setTimeout> | undefined;

  const opened = (via: "stream" | "poll") => {
    healthy ??= setTimeout(() => {
      attempt = 0;
      link.set({ attempt });
    }, HEALTHY);
    link.set({ phase: "open", via, error: null, retryAt: null, lastByteAt: Date.now() });
  };

  /** Read one stream to its end; returns false when not even its first byte came in time. */
  const stream = async () => {
    const stop = new AbortController();
    const either = AbortSignal.any([signal, stop.signal]);
    const { cursor } = inbox;
    let begun = false;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const watch = (ms: number) => {
      clearTimeout(timer);
      timer = setTimeout(() => stop.abort(asError("silence")), ms);
    };
    await http.token();
    watch(streamTimeout);
    try {
      await (options.transport === "eventsource" ? readEventSource : readStream)(http, session, cursor, either, {
        alive() {
          either.throwIfAborted();
          if (!begun && !cursor) inbox.renew();
          begun = true;
          polling?.abort();
          polling = undefined;
          gap = streamRetry;
          opened("stream");
          watch(2 * link.beat);
        },
        frame(id, data) {
          either.throwIfAborted(); // by a listener
          if (data === undefined) inbox.prime(id);
          else inbox.take(id, data);
        },
        retry(ms) {
          base = Math.max(reconnectDelay, ms);
        },
        beat(ms) {
          link.beat = ms || link.beat;
        },
      });
    } catch (error) {
      if (begun || !stop.signal.aborted) throw either.aborted ? either.reason : error;
    } finally {
      clearTimeout(timer);
      stop.abort();
    }
    return begun;
  };

  /** Poll beside the attempts at a stream, until one succeeds or a poll fails. */
  const poll = () => {
    const stop = new AbortController();
    pages(AbortSignal.any([signal, stop.signal]));
    return stop;
  };

  const pages = async (either: AbortSignal) => {
    try {
      for (let wait = 0; ; wait = WAIT) {
        const count = await takePage(http, session, inbox, wait, either);
        opened("poll");
        if (!count) await nap(Math.random() * 1000, either); // whatever answers so fast, do not spin
      }
    } catch (error) {
      if (either.aborted) return;
      polling = undefined;
      pollError = error;
      link.wake();
    }
  };

  for (;;) {
    if (!polling) link.set({ phase: "connecting", retryAt: null });
    let thrown: unknown = "the stream ended";
    let held = false;
    try {
      held = !(await stream());
    } catch (error) {
      thrown = error;
    }
    signal.throwIfAborted();
    if (held || polling) {
      polling ??= poll();
      await nap(gap, signal, link);
      gap = Math.min(gap * 2, streamRetry * 10);
      if (polling) continue;
      thrown = pollError;
    }
    clearTimeout(healthy);
    healthy = undefined;
    const error = asError(thrown);
    const expired = error.code === "unauthorized" && !error.status && http.expire();
    if (!expired && isFinal(error)) throw error;
    const offline = globalThis.navigator?.onLine === false;
    if (!offline && ++attempt > maxReconnectAttempts) {
      throw new AgentSSEError("max_attempts", `${maxReconnectAttempts} attempts failed: ${error.message}`);
    }
    const delay = offline ? FOREVER : expired ? 0 : backoff(attempt, base, maxReconnectDelay, error);
    link.set({ phase: offline ? "offline" : "waiting", attempt, retryAt: offline ? null : Date.now() + delay, error });
    await nap(delay, signal, link);
  }
}
