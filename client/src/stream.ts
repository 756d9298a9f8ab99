// One event stream, by `fetch` or by the browser's EventSource: bytes to frames, no retrying.
// https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation

import { asError } from "./errors.js";
import type { Http } from "./http.js";

const LONGEST = 2 ** 24; // characters of one event
const LIFETIME = 2 ** 31 - 1; // ms; the service ends streams long before

/** Who takes what a stream says. */
export interface Sink {
  /** Something arrived, be it a comment. */
  alive(): void;
  /** A frame: an id without data moves the cursor only. Throws where the stream has to end. */
  frame(id: string | null | undefined, data: string | undefined): void;
  /** The service asks for this time before a reconnection, milliseconds. */
  retry(ms: number): void;
  /** The service's heartbeat interval, milliseconds; NaN or 0 when it said none. */
  beat(ms: number): void;
}

/** Return a parser that takes the stream's text in pieces of any size. */
export function makeParser({ frame, retry }: Pick<Sink, "frame" | "retry">): (text: string) => void {
  let rest = "";
  let carriage = false; // the last piece ended with CR: an LF that follows belongs to it
  let id: string | undefined;
  let data: string | undefined;

  const line = (text: string) => {
    if (!text) {
      const [ownId, ownData] = [id, data];
      id = data = undefined;
      if (ownId || ownData !== undefined) frame(ownId, ownData);
    }
    const [, field, value = ""] = /^([^:]*)(?:: ?(.*))?/s.exec(text) as unknown as [string, string, string?];
    if (field === "data") data = data === undefined ? value : `${data}\n${value}`;
    if (field === "id" && !value.includes("\0")) id = value;
    if (field === "retry" && /^\d+$/.test(value)) retry(+value);
  };

  return (text) => {
    if (!text) return;
    const lines = (carriage && text[0] === "\n" ? text.slice(1) : text).split(/\r\n|\r|\n/);
    carriage = text.endsWith("\r");
    lines[0] = rest + lines[0];
    rest = lines.pop() as string;
    lines.forEach(line);
    if ((rest + data).length > LONGEST) throw asError("too long an event");
  };
}

/** Read one stream of `session` after `cursor`; returns when the service ends it, rejects when `signal` is aborted. */
export type Read = (
  http: Http,
  session: string,
  cursor: string | null,
  signal: AbortSignal,
  sink: Sink,
) => Promise<void>;

/** Read it by `fetch`: the token in a header, the status known. */
export const readStream: Read = async (http, session, cursor, signal, sink) => {
  const { headers, body } = await http.call(`/events/${session}`, {
    headers: cursor ? { "Last-Event-ID": cursor } : {},
    signal,
    patience: LIFETIME,
  });
  if (!body || !/^text\/event-stream/.test(headers.get("Content-Type") ?? "")) {
    throw asError("no event stream: check baseUrl");
  }
  sink.beat(1000 * Number(headers.get("Heartbeat-Interval")));
  const reader = body.getReader();
  const decoder = new TextDecoder();
  const parse = makeParser(sink);
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    sink.alive();
    parse(decoder.decode(value, { stream: true }));
  }
};

/** Read it by the browser's EventSource, with a single-use ticket in the URL. */
export const readEventSource: Read = async (http, session, cursor, signal, sink) => {
  const response = await http.call(`/ticket/${session}`, { method: "POST", signal });
  const { token } = (await response.json()).data;
  const query = new URLSearchParams({ token, ...(cursor && { last_event_id: cursor }) });
  const source = new EventSource(`${http.base}/events/${session}?${query}`);
  let last = ""; // an EventSource repeats the last id beside events that have none
  await new Promise<void>((resolve, reject) => {
    signal.onabort = () => reject(signal.reason);
    source.onerror = () => resolve();
    source.onmessage = ({ data, lastEventId }) => {
      try {
        sink.alive();
        sink.frame(lastEventId === last ? null : lastEventId, data);
        last = lastEventId;
      } catch (error) {
        reject(error);
      }
    };
  }).finally(() => source.close());
};
