// One connection kept alive: attempts, backoff, the watchdog, waiting while offline, long polling where streams do not
// get through. Knows nothing of tabs and listeners.

import { AgentSSEError, asError } from "./errors.js";
import type { Http } from "./http.js";
import type { Inbox } from "./inbox.js";
import { takePage } from "./poll.js";
import { readEventSource, readStream, type Sink } from "./stream.js";
import type { ClientOptions, ConnectionState } from "./types.js";

const HEALTHY = 60_000; // ms open after which failures are forgotten
const WAIT = 25; // s that a poll waits for an event
const LONGEST_WAIT = 300; // s of a Retry-After that are honoured

/** What a connection works with. */
export interface Link {
  readonly http: Http;
  /** The session's id, encoded for a path. */
  readonly session: string;
  readonly options: ClientOptions;
  readonly inbox: Inbox;
  /** The heartbeat interval, milliseconds. */
  beat: number;
  /** Ends the present wait, if there is one. */
  wake: () => void;
  set(change: Partial<ConnectionState>): void;
}

/** Resolve after `ms` or when `stop` is aborted. */
export const pause = (ms: number, stop: AbortSignal, waker?: (wake: () => void) => void) =>
  new Promise<void>((resolve) => {
    const timer = ms < Infinity ? setTimeout(done, ms) : undefined;
    function done() {
      clearTimeout(timer);
      stop.removeEventListener("abort", done);
      resolve();
    }
    stop.addEventListener("abort", done);
    waker?.(done);
    if (stop.aborted) done();
  });

/** The wait before attempt `attempt` (from 1), milliseconds: exponential with full jitter, capped. */
export const backoff = (attempt: number, base: number, cap: number): number =>
  Math.random() * Math.min(cap, base * 2 ** (attempt - 1));

/** Keep connected until `signal` is aborted (rejects with its reason) or for good (rejects with the AgentSSEError). */
export async function keepConnected(link: Link, signal: AbortSignal): Promise<never> {
  const { http, inbox, options, set } = link;
  const {
    reconnectDelay = 1000,
    maxReconnectDelay = 30_000,
    maxReconnectAttempts = 10,
    streamTimeout = 5000,
    streamRetry = 30_000,
  } = options;
  const read = options.transport === "eventsource" ? readEventSource : readStream;
  let attempt = 0;
  let base = reconnectDelay;
  let streamAt = 0; // when a stream may be tried again, after one was held back
  let streamGap = streamRetry;
  let healthy: ReturnType<typeof setTimeout> | undefined;

  const opened = (via: "stream" | "poll") => {
    healthy ??= setTimeout(() => {
      attempt = 0;
      set({ attempt });
    }, HEALTHY);
    set({ phase: "open", via, error: null, retryAt: null, lastByteAt: Date.now() });
  };

  /** Read one stream to its end; `first` is called with its first byte. Returns false when that never came. */
  const stream = async (first: () => void): Promise<boolean> => {
    const stop = new AbortController();
    const either = AbortSignal.any([signal, stop.signal]);
    const { cursor } = inbox;
    let timer: ReturnType<typeof setTimeout> | undefined;
    let begun = false;
    const watch = (ms: number) => {
      clearTimeout(timer);
      timer = setTimeout(() => stop.abort(new AgentSSEError("network", "nothing was heard for two heartbeats")), ms);
    };
    const sink: Sink = {
      alive() {
        either.throwIfAborted();
        if (!begun) {
          begun = true;
          first();
          if (!cursor) inbox.renew();
        }
        opened("stream");
        watch(2 * link.beat);
      },
      frame(id, data) {
        either.throwIfAborted();
        if (data === undefined) inbox.prime(id);
        else inbox.take(id, data);
      },
      retry(ms) {
        base = Math.max(reconnectDelay, ms);
      },
      beat(ms) {
        if (ms) link.beat = ms;
      },
    };
    try {
      await http.token();
      watch(streamTimeout);
      await read(http, link.session, cursor, either, sink);
    } catch (error) {
      if (begun || !stop.signal.aborted) throw either.aborted ? either.reason : error;
    } finally {
      clearTimeout(timer);
      stop.abort();
    }
    return begun;
  };

  const held = () => {
    streamAt = Date.now() + streamGap;
    streamGap = Math.min(streamGap * 2, streamRetry * 10);
  };

  /** Poll until it fails, or until a stream that is tried beside it takes over and ends. */
  const poll = async (): Promise<void> => {
    const stop = new AbortController();
    const either = AbortSignal.any([signal, stop.signal]);
    let taken = false;
    const beside = async () => {
      while (!taken && !either.aborted) {
        await pause(streamAt - Date.now(), either);
        if (either.aborted) return;
        held();
        try {
          await stream(() => {
            either.throwIfAborted();
            taken = true;
            streamAt = 0;
            streamGap = streamRetry;
            stop.abort();
          });
        } catch (error) {
          if (taken) throw error;
        }
      }
    };
    const pages = async () => {
      try {
        for (let wait = 0; ; wait = WAIT) {
          const count = await takePage(http, link.session, inbox, wait, either);
          opened("poll");
          if (!count) await pause(Math.random() * 1000, either);
        }
      } catch (error) {
        if (!taken) throw error;
      }
    };
    try {
      await Promise.all([pages(), beside()]);
    } finally {
      stop.abort();
    }
  };

  const once = async () => {
    if (Date.now() >= streamAt) {
      if (await stream(() => {})) return;
      held();
    }
    await poll();
  };

  for (;;) {
    set({ phase: "connecting", retryAt: null });
    const error = await once().then(
      () => new AgentSSEError("network", "the service ended the stream"),
      (thrown) => {
        if (signal.aborted) throw signal.reason;
        return asError(thrown);
      },
    );
    clearTimeout(healthy);
    healthy = undefined;
    let delay = 0;
    if (error.code === "unauthorized" && !error.status && http.expire()) attempt++;
    else if (
      /^(unauthorized|session_closed)$/.test(error.code) ||
      (error.status && error.status < 500 && error.status !== 429)
    )
      throw error;
    else if (globalThis.navigator?.onLine === false) {
      set({ phase: "offline", error });
      await pause(Infinity, signal, (wake) => {
        link.wake = wake;
      });
      signal.throwIfAborted();
      continue;
    } else {
      attempt++;
      delay = backoff(attempt, base, maxReconnectDelay) + 1000 * Math.min(error.retryAfter ?? 0, LONGEST_WAIT);
    }
    if (attempt > maxReconnectAttempts)
      throw new AgentSSEError("max_attempts", `gave up after ${maxReconnectAttempts} attempts: ${error.message}`);
    set({ phase: "waiting", attempt, retryAt: Date.now() + delay, error });
    await pause(delay, signal, (wake) => {
      link.wake = wake;
    });
    signal.throwIfAborted();
  }
}
