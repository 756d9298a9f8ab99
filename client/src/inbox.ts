// What has arrived: the cursor, no event twice, and which permission requests are open. Pure; knows no connection.

import { AgentSSEError } from "./errors.js";
import type { ReceivedEvent } from "./types.js";

const REMEMBERED = 1000; // permission requests

// Return an event's JSON, or nothing for what is none: one bad event is not to end the stream.
function parse(id: string | null, raw: string) {
  try {
    const event = JSON.parse(raw);
    if (typeof event.type === "string") return event;
  } catch {}
  console.error("agent-sse: no event", id);
}

const padded = (id: string) => id.replace(/\d+/g, (digits) => digits.padStart(20, "0"));

/** Whether event id `a`, `"<ms>-<seq>"`, comes after `b`; everything comes after none, none after anything. */
export const isAfter = (a: string | null | undefined, b: string | null): boolean =>
  !!a && (!b || padded(a) > padded(b));

/** One client's inbox. */
export interface Inbox {
  /** Where to go on: the id of the last event. Null before the first, and while a snapshot is under way. */
  cursor: string | null;
  /** The id of the request that was delivered last, a repeat included: what a page with one card shows. */
  shown?: string;
  /** Take an event's text; what was taken before is dropped. Throws AgentSSEError where the event ends the stream. */
  take(id: string | null | undefined, raw: string): void;
  /** Move the cursor to `id`, forward only. */
  prime(id: string | null | undefined): void;
  /** A snapshot follows: whatever it says is new. */
  renew(): void;
}

/**
 * Return an inbox that goes on after `cursor` and hands each event to `deliver`, with the cursor before it, and whether it
 * only says an open request again.
 */
export function makeInbox(
  cursor: string | null,
  deliver: (event: ReceivedEvent, previous: string | null, again: boolean) => void,
): Inbox {
  const requests = new Map<string, boolean>(); // whether it is open, by id
  const inbox: Inbox = {
    cursor,
    take(id = null, raw) {
      if (id && !isAfter(id, inbox.cursor)) return;
      const previous = inbox.cursor;
      inbox.prime(id);
      const event = parse(id, raw);
      if (!event) return;
      const { type, data, ...top } = event;
      const request = data?.request_id;
      const again = type === "permission_request" && requests.get(request);
      if (type === "stream_reset") inbox.renew();
      if (type === "permission_cleared")
        for (const one of request ? [request] : requests.keys()) requests.set(one, false);
      if (type === "permission_request") {
        if (again === false) return; // a repeat that crossed its clearing
        requests.set(request, true);
        inbox.shown = request;
      }
      if (requests.size > REMEMBERED) requests.delete(requests.keys().next().value as string);
      if (type === "heartbeat") id = null; // EventSource says the cursor beside it
      deliver({ id, type, data: data ?? top, raw } as ReceivedEvent, previous, !!again);
      if (!id && type === "error") {
        throw new AgentSSEError(top.code === "token_expired" ? "unauthorized" : top.code, top.message, null, null, top);
      }
    },
    prime(id) {
      if (isAfter(id, inbox.cursor)) inbox.cursor = id as string;
    },
    renew() {
      inbox.cursor = null;
      requests.clear();
    },
  };
  return inbox;
}
