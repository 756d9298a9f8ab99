// One event stream, by `fetch` or by the browser's EventSource: bytes to frames, no retrying.
// https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation

import { AgentSSEError } from "./errors.js";
import type { Http } from "./http.js";

const LONGEST = 2 ** 24; // characters of one event

/** Who takes what a stream says. */
export interface Sink {
  /** Something arrived, be it a comment. */
  alive(): void;
  /** A frame: an id without data moves the cursor only. Throws where the stream has to end. */
  frame(id: string | null | undefined, data: string | undefined): void;
  /** The service asks for this time before a reconnection, milliseconds. */
  retry(ms: number): void;
  /** The service's heartbeat interval, milliseconds. */
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
      const [itsId, itsData] = [id, data];
      id = data = undefined;
      if (itsId || itsData !== undefined) frame(itsId, itsData);
      return;
    }
    const [, field, value = ""] = /^([^:]*)(?:: ?(.*))?$/s.exec(text) as RegExpExecArray;
    if (field === "data") data = data === undefined ? value : `${data}\n${value}`;
    else if (field === "id" && !value.includes("\0")) id = value;
    else if (field === "retry" && /^\d+$/.test(value)) retry(+value);
    if ((data?.length ?? 0) > LONGEST) throw new AgentSSEError("network", "an event of the stream is too long");
  };

  return (text) => {
    if (!text) return;
    const lines = (carriage && text[0] === "\n" ? text.slice(1) : text).split(/\r\n|\r|\n/);
    carriage = text.endsWith("\r");
    lines[0] = rest + lines[0];
    rest = lines.pop() as string;
    if (rest.length > LONGEST) throw new AgentSSEError("network", "an event of the stream is too long");
    lines.forEach(line);
  };
}

/** Read the stream of `session` after `cursor` by `fetch`; returns when the service ends it. */
export async function readStream(http: Http, session: string, cursor: string | null, signal: AbortSignal, sink: Sink) {
  const response = await http.call(`/events/${session}`, {
    headers: { Accept: "text/event-stream", ...(cursor && { "Last-Event-ID": cursor }) },
    signal,
    patience: Infinity,
  });
  if (!response.body || !/^text\/event-stream/i.test(response.headers.get("Content-Type") ?? "")) {
    throw new AgentSSEError("not_a_stream", "what answered is no event stream: check baseUrl", response.status);
  }
  sink.beat(Number(response.headers.get("Heartbeat-Interval")) * 1000);
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  const parse = makeParser(sink);
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    sink.alive();
    parse(decoder.decode(value, { stream: true }));
  }
}

/** The same by the browser's EventSource, with a single-use ticket in the URL. */
export async function readEventSource(
  http: Http,
  session: string,
  cursor: string | null,
  signal: AbortSignal,
  sink: Sink,
) {
  const ticket = await (await http.call(`/ticket/${session}`, { method: "POST", signal })).json();
  const query = new URLSearchParams({ token: ticket.data.token, ...(cursor && { last_event_id: cursor }) });
  const source = new EventSource(`${http.base}/events/${session}?${query}`);
  let last = ""; // an EventSource repeats the last id beside events that have none
  try {
    await new Promise<void>((resolve, reject) => {
      signal.onabort = () => reject(signal.reason);
      source.onerror = () => resolve();
      source.onmessage = ({ data, lastEventId }) => {
        sink.alive();
        try {
          const own = lastEventId !== last && !/^\{"type":"heartbeat"/.test(data);
          if (lastEventId !== last && !own) sink.frame(lastEventId, undefined);
          last = lastEventId;
          sink.frame(own ? lastEventId : null, data);
        } catch (error) {
          reject(error);
        }
      };
    });
  } finally {
    source.close();
  }
}
