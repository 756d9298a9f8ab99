// Long polling: page after page, with the same cursor and order as the stream. Loaded where it is used.

import type { Link } from "./link.js";

const WAIT = 25; // s that a poll waits for an event
const MARGIN = 10_000; // ms beyond the wait that a page may take

const { rawJSON } = JSON as { rawJSON?: (text: string) => unknown };

// A whole number beyond 2^53 keeps its digits, where the engine can: `raw` is what was sent.
const exact = (_key: string, value: unknown, context?: { source: string }) =>
  rawJSON && Number.isInteger(value) && !Number.isSafeInteger(value)
    ? rawJSON((context as { source: string }).source)
    : value;

/**
 * Take the page after the cursor, waiting up to `wait` seconds for an event; return whether it moved the cursor. Throws
 * whatever went wrong, and the reason when `signal` is aborted.
 */
export async function takePage({ http, inbox, session }: Link, wait: number, signal: AbortSignal): Promise<boolean> {
  const { cursor } = inbox;
  const after = cursor ? `&last_event_id=${encodeURIComponent(cursor)}` : "";
  const late = AbortSignal.timeout(wait * 1000 + MARGIN);
  late.onabort = () => {}; // Node 20 forgets a timeout that nobody but `any` listens to
  const response = await http.call(`/poll/${session}?wait=${wait}${after}`, {
    signal: AbortSignal.any([signal, late]),
  });
  const { events, last_event_id } = JSON.parse(await response.text(), exact).data;
  signal.throwIfAborted();
  if (!cursor) inbox.renew();
  for (const { id, type, data } of events) {
    inbox.take(id, JSON.stringify(type === "error" ? { type, ...data } : { type, data }));
    signal.throwIfAborted(); // by a listener
  }
  inbox.prime(last_event_id);
  return inbox.cursor !== cursor;
}

/** Resolve after `ms`. */
export const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** Poll until a poll fails or `signal` is aborted: rejects with the reason. `taken` is called after each page. */
export async function keepPolling(link: Link, signal: AbortSignal, taken: () => void): Promise<never> {
  for (let wait = 0; ; wait = WAIT) {
    const moved = await takePage(link, wait, signal);
    taken();
    if (!moved) await sleep(Math.random() * 1000); // whatever answers so fast, do not spin
  }
}
