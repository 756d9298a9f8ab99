// Long polling: one page of events, with the same cursor and order as the stream.

import type { Http } from "./http.js";
import type { Inbox } from "./inbox.js";

const MARGIN = 10_000; // ms beyond the wait that a page may take

// A whole number beyond 2^53 keeps its digits, where the engine can: `raw` is what was sent.
function exact(_key: string, value: unknown, context?: { source?: string }): unknown {
  const { rawJSON } = JSON as { rawJSON?: (text: string) => unknown };
  return Number.isInteger(value) && !Number.isSafeInteger(value) && rawJSON ? rawJSON(context?.source ?? "") : value;
}

/** Take the page after the inbox' cursor, waiting up to `wait` seconds for an event; return how many there were. */
export async function takePage(http: Http, session: string, inbox: Inbox, wait: number, signal: AbortSignal) {
  const { cursor } = inbox;
  const query = new URLSearchParams({ wait: `${wait}`, ...(cursor && { last_event_id: cursor }) });
  const response = await http.call(`/poll/${session}?${query}`, { signal, patience: wait * 1000 + MARGIN });
  const { events, last_event_id } = JSON.parse(await response.text(), exact).data;
  signal.throwIfAborted();
  if (!cursor) inbox.renew();
  for (const { id, type, data } of events) {
    inbox.take(id, JSON.stringify(/^(heartbeat|error)$/.test(type) ? { type, ...data } : { type, data }));
    signal.throwIfAborted(); // by a listener
  }
  inbox.prime(last_event_id);
  return events.length as number;
}
