// One connection kept alive: attempts, backoff, the watchdog, waiting while offline, long polling where streams do not
// get through. Knows nothing of tabs and listeners.

import { AgentSSEError, asError } from "./errors.js";
import { type Link, type Scope, within } from "./link.js";
import { readStream } from "./stream.js";
import type { ClientOptions } from "./types.js";

const HEALTHY = 60_000; // ms open, in all, after which failures are forgotten
const LONGEST_WAIT = 300; // s of a Retry-After that are honoured

const SILENCE = asError("no heartbeat");
const OVERTAKEN = Symbol();

// Wait `ms`, or until `link.wake()`. Throws the reason when `signal` is aborted.
async function nap(link: Link, ms: number, signal: AbortSignal) {
  signal.throwIfAborted(); // by a listener, who was told of the wait
  let timer: ReturnType<typeof setTimeout> | undefined;
  await new Promise((resolve) => {
    timer = setTimeout(resolve, ms);
    link.wake = signal.onabort = resolve;
  });
  clearTimeout(timer);
  signal.throwIfAborted();
}

/** The wait after `attempt` failures, milliseconds: exponential with full jitter, and what the service asked for. */
export const backoff = (attempt: number, base: number, cap: number, { retryAfter }: AgentSSEError): number =>
  Math.random() * Math.min(cap, base * 2 ** (attempt - 1)) + 1000 * Math.min(retryAfter as number, LONGEST_WAIT);

/** Throw what ends a connection after `attempt` failures, the last of them `error`; return where it may go on. */
export function endure({ maxReconnectAttempts = 10 }: ClientOptions, attempt: number, error: AgentSSEError): void {
  const { code, status } = error;
  // A status is final where the service itself says why; a page of what stands before it is not.
  if (/^(unauth|session_cl)/.test(code) || (status && status < 500 && !/^(limited|http_)/.test(code))) throw error;
  if (attempt > maxReconnectAttempts) {
    throw new AgentSSEError("max_attempts", `${maxReconnectAttempts} attempts failed: ${error.message}`);
  }
}

/** Keep connected until `signal` is aborted (rejects with its reason) or for good (rejects with the AgentSSEError). */
export async function keepConnected(link: Link, signal: AbortSignal): Promise<never> {
  const { http, inbox, options } = link;
  const { reconnectDelay = 1000, maxReconnectDelay = 30_000, streamTimeout = 5000, streamRetry = 30_000 } = options;
  let attempt = 0;
  let base = reconnectDelay;
  let open = 0; // ms, since failures were last forgotten
  let last = NaN; // until when `open` is counted, Unix ms; NaN while it is not open
  let gap = streamRetry; // until a stream is tried beside polling
  let polling: Scope | undefined;
  let pollError: unknown; // why the last poll failed
  let begun = false; // the present stream said something

  const count = () => {
    const now = Date.now();
    open += now - last || 0;
    if (open > HEALTHY) attempt = open = 0;
    last = now;
  };
  const opened = (via: "stream" | "poll") => {
    count();
    link.set({ phase: "open", via, attempt, error: null, retryAt: null, lastByteAt: last });
  };

  /** Read one stream to its end; returns why it ended. */
  const stream = async (): Promise<unknown> => {
    const { signal: either, end } = within(signal);
    const { cursor } = inbox;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const watch = (ms: number) => {
      clearTimeout(timer);
      timer = setTimeout(end, ms, SILENCE);
    };
    const alive = () => {
      if (either.aborted) return;
      if (!begun && !cursor) {
        if (inbox.cursor) return end(OVERTAKEN); // its snapshot would say again what polls have said
        inbox.renew();
      }
      begun = true;
      polling?.end();
      polling = undefined;
      gap = streamRetry;
      opened("stream");
      watch(2 * link.beat);
    };
    const frame = (id: string | null | undefined, data: string | undefined) => {
      try {
        either.throwIfAborted(); // by a listener
        if (data === undefined) inbox.prime(id);
        else inbox.take(id, data);
      } catch (error) {
        end(error);
      }
    };
    begun = false;
    link.drop = end;
    let why: unknown = "the stream ended";
    try {
      await http.token();
      watch(streamTimeout);
      const read =
        options.transport === "eventsource" ? (await import("./eventsource.js")).readEventSource : readStream;
      await read(link, cursor, either, alive, frame, (ms) => {
        base = Math.max(reconnectDelay, ms);
      });
    } catch (error) {
      why = error;
    }
    clearTimeout(timer);
    why = either.reason ?? why; // the service may end the stream with the very bytes that say why
    end();
    return why;
  };

  /** Poll beside the attempts at a stream, until one succeeds or a poll fails. */
  const poll = async (either: AbortSignal) => {
    try {
      await (await import("./poll.js")).keepPolling(link, either, () => opened("poll"));
    } catch (error) {
      pollError = error;
      if (either.aborted) return;
      polling = undefined;
      link.wake?.();
    }
  };

  for (;;) {
    if (!polling && (begun || isOnline())) link.set({ phase: "connecting", retryAt: null });
    let why = await stream();
    signal.throwIfAborted();
    if (why === OVERTAKEN) continue;
    if (polling || (why === SILENCE && !begun)) {
      if (!polling) {
        polling = within(signal);
        poll(polling.signal);
      }
      await nap(link, gap, signal);
      gap = Math.min(gap * 2, streamRetry * 10);
      if (polling) continue;
      why = pollError;
    }
    if (why !== SILENCE) count();
    last = NaN;
    const error = asError(why);
    const expired = begun && error.code === "unauthorized" && http.expire();
    const online = isOnline();
    const offline = !begun && !online;
    if (!expired) endure(options, offline ? attempt : ++attempt, error);
    // At once with another token, and also without a network: the service may be there, on this very machine.
    const atOnce = begun ? 0 : maxReconnectDelay;
    const delay = online && !expired ? backoff(attempt, base, maxReconnectDelay, error) : atOnce;
    link.set({ phase: offline ? "offline" : "waiting", attempt, retryAt: offline ? null : Date.now() + delay, error });
    await nap(link, delay, signal);
  }
}

const isOnline = () => globalThis.navigator?.onLine !== false;
