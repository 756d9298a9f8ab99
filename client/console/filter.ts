// Which of the kept events are shown: by type, tool, status, and a text anywhere in their JSON. Looks through them in
// slices of a few milliseconds, so that neither typing nor drawing waits for 32 MiB.

import type { Entry, EventLog } from "./log.js";

/** What is shown; an empty field asks for nothing. */
export interface Filter {
  readonly type: string;
  readonly tool: string;
  readonly status: string;
  /** Looked for in the event's JSON text and its id, in any case of letters. */
  readonly text: string;
}

export const EVERYTHING: Filter = { type: "", tool: "", status: "", text: "" };
export const SLICE = 8; // milliseconds
const LOOK_AT_CLOCK = 64 * 1024; // characters between two looks at the clock

/** Return whether an entry is asked for; `needle` is the filter's text in lower case. */
export function matches(entry: Entry, { type, tool, status }: Filter, needle: string): boolean {
  if ((type && entry.type !== type) || (tool && entry.tool !== tool) || (status && entry.status !== status))
    return false;
  if (!needle) return true;
  return entry.raw.toLowerCase().includes(needle) || (entry.id?.includes(needle) ?? false);
}

/** The entries of a log that a filter asks for, oldest first; `advance` brings them up to date. */
export class Rows {
  /** Never changed in place from outside; the same array until the filter changes. */
  shown: Entry[] = [];
  filter = EVERYTHING;
  #needle = "";
  #cursor = 0;
  /** `seq` of the first entry that is not shown for a pause. */
  #until = Number.POSITIVE_INFINITY;

  constructor(readonly log: EventLog) {}

  get paused(): boolean {
    return this.#until !== Number.POSITIVE_INFINITY;
  }

  /** How many entries came since the pause began. */
  get held(): number {
    return Math.max(0, this.log.next - this.#until);
  }

  /** Whether there are entries to be looked at. */
  get searching(): boolean {
    return Math.max(this.#cursor, this.log.first) < this.#end;
  }

  get #end(): number {
    return Math.min(this.log.next, this.#until);
  }

  /** Show nothing that comes from now on, and keep what is shown though the log drops it. */
  pause(): void {
    this.#until = this.log.next;
  }

  resume(): void {
    this.#until = Number.POSITIVE_INFINITY;
  }

  setFilter(filter: Filter): void {
    this.filter = filter;
    this.#needle = filter.text.toLowerCase();
    this.shown = [];
    this.#cursor = this.log.first;
  }

  /** Forget what was shown, and a pause; what comes next is shown. */
  restart(): void {
    this.resume();
    this.setFilter(this.filter);
  }

  /**
   * Drop what the log has dropped and look at what it has got, for about `budget` milliseconds. Returns whether it
   * came to the end; `dropped` says how many rows went from the top.
   */
  advance(budget = SLICE, now: () => number = () => performance.now()): { done: boolean; dropped: number } {
    const dropped = this.paused ? 0 : this.#drop();
    const until = now() + budget;
    let read = 0;
    this.#cursor = Math.max(this.#cursor, this.log.first);
    while (this.searching) {
      const entry = this.log.entries[this.#cursor - this.log.first];
      if (entry === undefined) break;
      if (matches(entry, this.filter, this.#needle)) this.shown.push(entry);
      this.#cursor += 1;
      read += this.#needle ? entry.raw.length + 64 : 64;
      if (read > LOOK_AT_CLOCK) {
        read = 0;
        if (now() > until) break;
      }
    }
    return { done: !this.searching, dropped };
  }

  #drop(): number {
    const { first } = this.log;
    let gone = 0;
    while (gone < this.shown.length && (this.shown[gone]?.seq ?? first) < first) gone += 1;
    if (gone > 0) this.shown.splice(0, gone);
    return gone;
  }
}
