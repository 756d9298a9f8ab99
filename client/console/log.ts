// The events that the console keeps: a bounded ring of their texts. What an event carries is kept as text only.

import type { EventType } from "../src/events.js";
import { isObject } from "../src/text.js";
import type { ReceivedEvent } from "../src/types.js";

/** How much is kept: what is older goes first. */
export const MAX_EVENTS = 10_000;
export const MAX_BYTES = 32 * 1024 * 1024; // a JavaScript character counts as two

/** One event as it is kept. */
export interface Entry {
  /** Counts up from 0 over all that was ever kept. */
  readonly seq: number;
  /** When it arrived, Unix milliseconds by this computer's clock. */
  readonly at: number;
  readonly id: string | null;
  readonly type: EventType;
  /** The tool it is about; empty for what is about none. */
  readonly tool: string;
  /** The status or outcome that it says; empty for what says none. */
  readonly status: string;
  readonly raw: string;
}

/** A ring of entries, oldest first, bounded in number and in bytes. */
export class EventLog {
  /** Those that are kept, with consecutive `seq`. */
  readonly entries: Entry[] = [];
  /** The names of tools seen, for the filter; bounded. */
  readonly tools = new Set<string>();
  /** How many were dropped because there were too many. */
  dropped = 0;
  #next = 0;
  #bytes = 0;

  constructor(
    readonly maxEvents = MAX_EVENTS,
    readonly maxBytes = MAX_BYTES,
  ) {}

  /** `seq` of the oldest that is kept; of the next to come when there is none. */
  get first(): number {
    return this.entries[0]?.seq ?? this.#next;
  }

  /** `seq` of the next to come: how many there ever were. */
  get next(): number {
    return this.#next;
  }

  get bytes(): number {
    return this.#bytes;
  }

  append(event: ReceivedEvent, at: number): void {
    const { id, type, raw } = event;
    const tool = toolOf(event);
    this.entries.push({ seq: this.#next++, at, id, type, tool, status: statusOf(event), raw });
    this.#bytes += 2 * raw.length;
    if (tool && this.tools.size < 500) this.tools.add(tool);
    this.#trim();
  }

  clear(): void {
    this.entries.length = 0;
    this.dropped = 0;
    this.#bytes = 0;
  }

  #trim(): void {
    // One event larger than the bound is kept nevertheless: it is the newest, and the service bounds it.
    let gone = 0;
    while (
      gone < this.entries.length - 1 &&
      (this.entries.length - gone > this.maxEvents || this.#bytes > this.maxBytes)
    ) {
      this.#bytes -= 2 * (this.entries[gone++]?.raw.length ?? 0);
    }
    if (gone > 0) this.entries.splice(0, gone);
    this.dropped += gone;
  }
}

// What a later service sends may have other fields: nothing is taken for granted.
function fieldsOf(event: ReceivedEvent): Record<string, unknown> {
  const data: unknown = event.data;
  return isObject(data) ? data : {};
}

function toolOf(event: ReceivedEvent): string {
  const { tool_name: tool } = fieldsOf(event);
  return typeof tool === "string" ? tool : "";
}

function statusOf(event: ReceivedEvent): string {
  const { status, outcome, approved, success } = fieldsOf(event);
  if (event.type === "tool_result") return success === true ? "completed" : "failed";
  if (event.type === "permission_response_result") return approved === true ? "approved" : "denied";
  const said = status ?? outcome;
  return typeof said === "string" ? said : "";
}

/** Return entries as NDJSON: `{"id", "received_at", "event"}` a line, the event exactly as it arrived. */
export function ndjson(entries: readonly Entry[]): string[] {
  return entries.map(({ id, at, raw }) => {
    const head = `{"id":${JSON.stringify(id)},"received_at":"${new Date(at).toISOString()}","event":`;
    return `${head}${raw.replace(/[\r\n]+/g, " ")}}\n`; // between JSON's tokens only: within a string they are escaped
  });
}
