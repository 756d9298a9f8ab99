// The list of events: only the rows that are seen are in the page, however many there are. One is chosen at a time.

import { useVirtualizer } from "@tanstack/react-virtual";
import { type KeyboardEvent, useLayoutEffect, useRef, useState } from "react";
import type { Follower } from "./follower.js";
import { useVersion } from "./hooks.js";
import type { Entry } from "./log.js";
import { summaryOf } from "./summary.js";
import { useTexts } from "./texts.js";
import { clock } from "./time.js";

export const ROW = 30; // pixels, as the style sheet has it
const NEAR_END = 8; // pixels from the end that still count as the end

interface Props {
  readonly follower: Follower;
  readonly chosen: Entry | null;
  readonly onChoose: (entry: Entry) => void;
}

export function EventList({ follower, chosen, onChoose }: Props) {
  const texts = useTexts();
  useVersion(follower);
  const { rows, log } = follower;
  const count = rows.shown.length;
  const scroller = useRef<HTMLDivElement>(null);
  const [atEnd, setAtEnd] = useState(true);
  const virtualizer = useVirtualizer({
    count,
    getScrollElement: () => scroller.current,
    estimateSize: () => ROW,
    overscan: 12,
  });
  useStayInPlace(follower, scroller, atEnd);
  const place = chosen === null ? -1 : indexOf(rows.shown, chosen.seq);
  // biome-ignore lint/correctness/useExhaustiveDependencies: only when another one is chosen
  useLayoutEffect(() => {
    if (scroller.current && place >= 0) scrollTo(scroller.current, place);
  }, [chosen]);
  const choose = (entry: Entry) => {
    setAtEnd(false); // what is looked at stays in sight
    onChoose(entry);
  };
  const onKeyDown = (event: KeyboardEvent) => {
    const next = target(event.key, place, count);
    const entry = next === null ? undefined : rows.shown[next];
    if (entry === undefined) return;
    event.preventDefault();
    choose(entry);
  };
  const onScroll = () => {
    const box = scroller.current;
    if (box) setAtEnd(box.scrollHeight - box.scrollTop - box.clientHeight <= NEAR_END);
  };
  return (
    <div className="list">
      <div
        ref={scroller}
        className="events"
        role="listbox"
        tabIndex={0}
        aria-label={texts.events}
        aria-activedescendant={place >= 0 ? `event-${chosen?.seq}` : undefined}
        onKeyDown={onKeyDown}
        onScroll={onScroll}
      >
        <div role="presentation" className="all" style={{ height: virtualizer.getTotalSize() }}>
          {virtualizer.getVirtualItems().map(({ index, start }) => {
            const entry = rows.shown[index];
            if (entry === undefined) return null;
            const at = { start, index, count };
            return (
              <EventRow key={entry.seq} entry={entry} at={at} chosen={entry.seq === chosen?.seq} onChoose={choose} />
            );
          })}
        </div>
      </div>
      {count === 0 && <p className="muted empty">{log.entries.length > 0 ? texts.noMatch : texts.noEvents}</p>}
      {!atEnd && count > 0 && (
        <button type="button" className="small to-end" onClick={() => scroller.current?.scrollTo({ top: count * ROW })}>
          {texts.toEnd}
        </button>
      )}
    </div>
  );
}

/** Scroll as little as shows a whole row. */
function scrollTo(box: HTMLElement, place: number): void {
  const top = place * ROW;
  box.scrollTop = Math.min(top, Math.max(box.scrollTop, top + ROW - box.clientHeight));
}

/** At the end stay at the end; elsewhere stay with the rows that are read, though older ones go from the top. */
function useStayInPlace(follower: Follower, scroller: { current: HTMLDivElement | null }, atEnd: boolean): void {
  const { version, rows } = follower;
  // biome-ignore lint/correctness/useExhaustiveDependencies: with each drawing of the list
  useLayoutEffect(() => {
    const box = scroller.current;
    const dropped = follower.takeDropped();
    if (box === null || rows.paused) return;
    if (atEnd) box.scrollTop = box.scrollHeight;
    else if (dropped > 0) box.scrollTop = Math.max(0, box.scrollTop - dropped * ROW);
  }, [version, atEnd]);
}

interface RowProps {
  readonly entry: Entry;
  readonly at: { readonly start: number; readonly index: number; readonly count: number };
  readonly chosen: boolean;
  readonly onChoose: (entry: Entry) => void;
}

function EventRow({ entry, at, chosen, onChoose }: RowProps) {
  return (
    // biome-ignore lint/a11y/useKeyWithClickEvents: the list has the keys
    // biome-ignore lint/a11y/useFocusableInteractive: the list has the focus
    <div
      role="option"
      id={`event-${entry.seq}`}
      className="event"
      aria-selected={chosen}
      aria-posinset={at.index + 1}
      aria-setsize={at.count}
      data-type={entry.type}
      style={{ transform: `translateY(${at.start}px)` }}
      onClick={() => onChoose(entry)}
    >
      <time>{clock(entry.at)}</time>
      <span className="kind">{entry.type}</span>
      <span className="what">{summaryOf(entry)}</span>
    </div>
  );
}

/** Return where a key leads from a row (-1: none is chosen); null for a key that leads nowhere. */
export function target(key: string, place: number, count: number): number | null {
  const page = 10;
  const moves: Record<string, number> = {
    ArrowDown: place + 1,
    ArrowUp: place < 0 ? count - 1 : place - 1,
    PageDown: place + page,
    PageUp: place < 0 ? count - 1 : place - page,
    Home: 0,
    End: count - 1,
  };
  const wanted = Object.hasOwn(moves, key) ? moves[key] : undefined;
  return wanted === undefined || count === 0 ? null : Math.min(count - 1, Math.max(0, wanted));
}

/** Return where the entry of that number is among those shown, or -1. They are in order. */
export function indexOf(shown: readonly Entry[], seq: number): number {
  let [low, high] = [0, shown.length - 1];
  while (low <= high) {
    const middle = (low + high) >> 1;
    const found = shown[middle]?.seq ?? 0;
    if (found === seq) return middle;
    if (found < seq) low = middle + 1;
    else high = middle - 1;
  }
  return -1;
}
