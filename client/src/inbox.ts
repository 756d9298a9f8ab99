// What has arrived: the cursor, no event twice, and which permission requests are open. Pure; knows no connection.

import { AgentSSEError } from "./errors.js";
import type { ReceivedEvent } from "./types.js";

const REMEMBERED = 1000; // permission requests

const padded = (id: string) =>
  id
    .split("-")
    .map((part) => part.padStart(20, "0"))
    .join();

/** Whether event id `a`, `"<ms>-<seq>"`, comes after `b`; everything comes after none. */
export const after = (a: string, b: string | null): boolean => !b || padded(a) > padded(b);

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
  const fresh = (event: ReceivedEvent) => {
    const { open } = inbox;
    if (event.type === "stream_reset") inbox.renew();
    const request = (event.data as { request_id?: string }).request_id;
    if (event.type === "permission_cleared") {
      if (request) open.delete(request);
      else open.clear();
    } else if (event.type === "permission_request" && request) {
      if (seen.has(request)) return false; // heartbeats say open ones again
      for (const set of [seen, open]) if (set.add(request).size > REMEMBERED) set.delete([...set][0] as string);
      inbox.shown = request;
    }
    return true;
  };
  const inbox: Inbox = {
    cursor,
    open: new Set(),
    shown: undefined,
    take(id = null, raw) {
      if (id && !after(id, inbox.cursor)) return;
      const { type, data, ...top } = JSON.parse(raw);
      const event = { id, type, data: data ?? top, raw } as ReceivedEvent;
      const previous = inbox.cursor;
      if (id) inbox.cursor = id;
      if (fresh(event)) deliver(event, previous);
      if (id || type !== "error") return;
      if (top.code === "token_expired") throw new AgentSSEError("unauthorized", top.message);
      if (top.code === "session_closed") throw new AgentSSEError(top.code, top.message);
    },
    prime(id) {
      if (id && after(id, inbox.cursor)) inbox.cursor = id;
    },
    renew() {
      inbox.cursor = null;
      seen.clear();
      inbox.open.clear();
    },
  };
  return inbox;
}
