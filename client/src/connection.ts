// One connection kept alive: attempts, backoff, the watchdog, waiting while offline, long polling where streams do not
// get through. Knows nothing of tabs and listeners.

import { AgentSSEError, asError, isFinal } from "./errors.js";
import { type Link, type Scope, within } from "./link.js";
import { readStream } from "./stream.js";

const HEALTHY = 60_000; // ms open after which failures are forgotten
const LONGEST_WAIT = 300; // s of a Retry-After that are honoured
const FOREVER = 2 ** 31 - 1; // ms, the longest that a timer takes

const SILENCE = asError("no heartbeat came");

// Wait `ms`, or until `link.wake()`. Throws the reason when `signal` is aborted.
async function nap(link: Link, ms: number, signal: AbortSignal) {
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

/** Keep connected until `signal` is aborted (rejects with its reason) or for good (rejects with the AgentSSEError). */
export async function keepConnected(link: Link, signal: AbortSignal): Promise<never> {
  const { http, inbox, options } = link;
  const { reconnectDelay = 1000, maxReconnectDelay = 30_000, maxReconnectAttempts = 10 } = options;
  const { streamTimeout = 5000, streamRetry = 30_000 } = options;
  let attempt = 0;
  let base = reconnectDelay;
  let since: number | undefined; // when it opened
  let gap = streamRetry; // until a stream is tried beside polling
  let polling: Scope | undefined;
  let pollError: unknown;
  let begun = false; // the present stream said something

  const opened = (via: "stream" | "poll") => {
    const lastByteAt = Date.now();
    since ??= lastByteAt;
    if (lastByteAt - since > HEALTHY) attempt = 0;
    link.set({ phase: "open", via, attempt, error: null, retryAt: null, lastByteAt });
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
      if (!begun && !cursor) inbox.renew();
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
    if (!polling) link.set({ phase: "connecting", retryAt: null });
    let error = asError(await stream());
    signal.throwIfAborted();
    if (polling || (error === SILENCE && !begun)) {
      if (!polling) {
        polling = within(signal);
        poll(polling.signal);
      }
      await nap(link, gap, signal);
      gap = Math.min(gap * 2, streamRetry * 10);
      if (polling) continue;
      error = asError(pollError);
    }
    since = undefined;
    const expired = error.code === "unauthorized" && !error.status && http.expire();
    if (!expired && isFinal(error)) throw error;
    const offline = globalThis.navigator?.onLine === false;
    if (!offline && ++attempt > maxReconnectAttempts) {
      throw new AgentSSEError("max_attempts", `${maxReconnectAttempts} attempts failed: ${error.message}`);
    }
    const delay = offline ? FOREVER : expired ? 0 : backoff(attempt, base, maxReconnectDelay, error);
    link.set({ phase: offline ? "offline" : "waiting", attempt, retryAt: offline ? null : Date.now() + delay, error });
    await nap(link, delay, signal);
  }
}
