// What has arrived: the cursor, no event twice, and which permission requests are open. Pure; knows no connection.

import { AgentSSEError } from "./errors.js";
import type { ReceivedEvent } from "./types.js";

const REMEMBERED = 1000; // permission requests

const padded = (id: string) => id.replace(/\d+/g, (digits) => digits.padStart(20, "0"));

/** Whether event id `a`, `"<ms>-<seq>"`, comes after `b`; everything comes after none, none after anything. */
export const isAfter = (a: string | null | undefined, b: string | null): boolean =>
  !!a && (!b || padded(a) > padded(b));

/** One client's inbox. */
export interface Inbox {
  /** Where to go on: the id of the last event. Null before the first, and while a snapshot is under way. */
  cursor: string | null;
  /** The open requests that were shown, the oldest first. */
  readonly open: Set<string>;
  /** The last request that was shown, also when it is settled. */
  shown: string | undefined;
  /** Take an event's text; what was taken before is dropped. Throws AgentSSEError where the event ends the stream. */
  take(id: string | null | undefined, raw: string): void;
  /** Move the cursor to `id`, forward only. */
  prime(id: string | null | undefined): void;
  /** A snapshot follows: whatever it says is new. */
  renew(): void;
}

/** Return an inbox that goes on after `cursor` and hands each event to `deliver`, with the cursor before it. */
export function makeInbox(
  cursor: string | null,
  deliver: (event: ReceivedEvent, previous: string | null) => void,
): Inbox {
  const seen = new Set<string>();
  const { open } = { open: new Set<string>() };

  /** Keep the books of permission requests; false for one that heartbeats say again. */
  const isNew = (type: string, request?: string) => {
    if (type === "permission_cleared") request ? open.delete(request) : open.clear();
    if (type !== "permission_request" || !request) return true;
    if (seen.has(request)) return false;
    for (const known of [seen, open]) {
      if (known.add(request).size > REMEMBERED) known.delete([...known][0] as string);
    }
    inbox.shown = request;
    return true;
  };

  const inbox: Inbox = {
    cursor,
    open,
    shown: undefined,
    take(id = null, raw) {
      if (id && !isAfter(id, inbox.cursor)) return;
      const { type, data, ...top } = JSON.parse(raw);
      const previous = inbox.cursor;
      inbox.prime(id);
      if (type === "stream_reset") inbox.renew();
      const own = type === "heartbeat" ? null : id; // EventSource says the cursor beside it
      const event = { id: own, type, data: data ?? top, raw };
      if (isNew(type, data?.request_id)) deliver(event as ReceivedEvent, previous);
      if (own || type !== "error") return;
      if (top.code === "token_expired") throw new AgentSSEError("unauthorized", top.message);
      if (top.code === "session_closed") throw new AgentSSEError(top.code, top.message);
    },
    prime(id) {
      if (id && isAfter(id, inbox.cursor)) inbox.cursor = id;
    },
    renew() {
      inbox.cursor = null;
      seen.clear();
      open.clear();
    },
  };
  return inbox;
}
