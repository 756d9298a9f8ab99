// One event stream by the browser's own EventSource. The token is never in its URL: a single-use ticket is.
// Loaded when it is asked for only, so nothing is imported here that the core has.

import type { Read } from "./stream.js";

// Whether an event says why the stream ends; such a one has no id of its own.
function isLastWord(text: string): boolean {
  try {
    const { type, code } = JSON.parse(text);
    return type === "error" && /^(session_closed|token_expired|unavailable)$/.test(code);
  } catch {
    return false;
  }
}

/** Read it by the browser's EventSource, with a single-use ticket in the URL; `signal` has to be aborted in the end. */
export const readEventSource: Read = async ({ http, session }, cursor, signal, alive, frame) => {
  const { token } = await http.data(`/ticket/${session}`, { method: "POST", signal });
  const after = cursor ? `&last_event_id=${encodeURIComponent(cursor)}` : "";
  return new Promise((resolve, reject) => {
    const source = new EventSource(`${http.base}/events/${session}?token=${token}${after}`);
    let last = ""; // an EventSource repeats the last id beside events that have none
    signal.onabort = () => {
      source.close();
      reject(signal.reason);
    };
    source.onerror = resolve;
    source.onmessage = ({ data, lastEventId }) => {
      alive();
      const own = lastEventId !== last && !isLastWord(data);
      frame(own ? lastEventId : null, data);
      last = lastEventId;
    };
  });
};
