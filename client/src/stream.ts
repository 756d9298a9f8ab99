// One event stream by `fetch`: bytes to frames, no retrying.
// https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation

import { asError } from "./errors.js";
import type { Link } from "./link.js";

const LONGEST = 2 ** 24; // characters of one event

/** Takes a frame; an id without data moves the cursor only. Throws nothing. */
export type TakeFrame = (id: string | null | undefined, data: string | undefined) => void;

/** Return a parser that takes the stream's text in pieces of any size. Throws AgentSSEError for an endless event. */
export function makeParser(frame: TakeFrame, retry: (ms: number) => void): (text: string) => void {
  let rest = "";
  let id: string | undefined;
  let data: string | undefined;

  const line = (text: string) => {
    const [, field, value = ""] = /^([^:]*)(?:: ?(.*))?/s.exec(text) as unknown as [string, string, string?];
    if (field === "data") data = data === undefined ? value : `${data}\n${value}`;
    if (field === "id" && !value.includes("\0")) id = value;
    if (field === "retry" && /^\d+$/.test(value)) retry(+value);
    if (!text) {
      if (id || data !== undefined) frame(id, data);
      id = data = undefined;
    }
  };

  return (text) => {
    const lines = (rest + text).split(/\r\n|\n|\r(?!$)/); // a last CR waits for its LF
    rest = lines.pop() as string;
    lines.forEach(line);
    if ((rest + data).length > LONGEST) throw asError("too long an event");
  };
}

/**
 * Read one stream after `cursor`: resolves when the service ends it, rejects when `signal` is aborted. `alive` is called
 * when anything arrives, be it a comment, and `retry` with the time that the service asks for, milliseconds.
 */
export type Read = (
  link: Link,
  cursor: string | null,
  signal: AbortSignal,
  alive: () => void,
  frame: TakeFrame,
  retry: (ms: number) => void,
) => Promise<unknown>;

/** Read it by `fetch`: the token in a header, the status known. */
export const readStream: Read = async (link, cursor, signal, alive, frame, retry) => {
  const { headers, body } = await link.http.call(`/events/${link.session}`, {
    headers: cursor ? { "Last-Event-ID": cursor } : {},
    signal,
  });
  if (!/event-stream/.test(`${headers.get("Content-Type")}`)) throw asError("no event stream: check baseUrl");
  link.beat = link.options.heartbeatInterval ?? (1000 * Number(headers.get("Heartbeat-Interval")) || link.beat);
  const reader = (body as ReadableStream<Uint8Array>).getReader();
  signal.onabort = () => reader.cancel().catch(() => {}); // Node 20 forgets a request's signal once it has its head
  const decoder = new TextDecoder();
  const parse = makeParser(frame, retry);
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    alive();
    parse(decoder.decode(value, { stream: true }));
  }
};
