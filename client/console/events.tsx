// The list of events: only the rows that are seen are in the page, however many there are. One is chosen at a time.

import { useVirtualizer } from "@tanstack/react-virtual";
import { type KeyboardEvent, type RefObject, useEffect, useLayoutEffect, useState } from "react";
import { oneLine } from "../src/text.js";
import type { Follower } from "./follower.js";
import { useVersion } from "./hooks.js";
import type { Entry } from "./log.js";
import { summaryOf } from "./summary.js";
import { useTexts } from "./texts.js";
import { clock, timeOfId } from "./time.js";

const ROW = 30; // pixels, as the style sheet has it
const NEAR_END = 8; // pixels from the end that still count as the end

interface Props {
  readonly follower: Follower;
  /** Gets the element that scrolls, and has the focus. */
  readonly box: RefObject<HTMLDivElement | null>;
  readonly chosen: Entry | null;
  readonly onChoose: (entry: Entry) => void;
}

export function EventList({ follower, box, chosen, onChoose }: Props) {
  const texts = useTexts();
  useVersion(follower);
  const { shown } = follower.rows;
  const place = chosen === null ? -1 : indexOf(shown, chosen.seq);
  const [atEnd, setAtEnd] = useState(true);
  useStayInPlace(follower, box, atEnd);
  useShowChosen(box, chosen, place);
  const choose = (entry: Entry) => {
    setAtEnd(false); // what is looked at stays in sight
    onChoose(entry);
  };
  const onKeyDown = (event: KeyboardEvent) => {
    const entry = shown[target(event.key, place, shown.length) ?? -1];
    if (entry === undefined) return;
    event.preventDefault();
    choose(entry);
  };
  const onScroll = () => {
    const { scrollHeight, scrollTop, clientHeight } = box.current ?? document.body;
    setAtEnd(scrollHeight - scrollTop - clientHeight <= NEAR_END);
  };
  return (
    <div className="list">
      <div
        ref={box}
        className="events"
        role="listbox"
        tabIndex={0}
        aria-label={texts.events}
        aria-activedescendant={place >= 0 ? `event-${chosen?.seq}` : undefined}
        onKeyDown={onKeyDown}
        onScroll={onScroll}
      >
        <SeenRows shown={shown} box={box} chosen={chosen} onChoose={choose} />
      </div>
      {shown.length === 0 && (
        <p className="muted empty">{follower.log.entries.length > 0 ? texts.noMatch : texts.noEvents}</p>
      )}
      {!atEnd && shown.length > 0 && (
        <button type="button" className="small to-end" onClick={() => setAtEnd(true)}>
          {texts.toEnd}
        </button>
      )}
    </div>
  );
}

/** At the end stay at the end; elsewhere stay with the rows that are read, though older ones go from the top. */
function useStayInPlace(follower: Follower, box: Props["box"], atEnd: boolean): void {
  const { version, rows } = follower;
  // biome-ignore lint/correctness/useExhaustiveDependencies: with each drawing of the list
  useLayoutEffect(() => {
    const dropped = follower.takeDropped();
    if (box.current === null || rows.paused) return;
    if (atEnd) box.current.scrollTop = box.current.scrollHeight;
    else if (dropped > 0) box.current.scrollTop = Math.max(0, box.current.scrollTop - dropped * ROW);
  }, [version, atEnd]);
  useEffect(() => {
    const node = box.current;
    if (node === null || !atEnd) return;
    const sizes = new ResizeObserver(() => {
      node.scrollTop = node.scrollHeight;
    });
    sizes.observe(node);
    return () => sizes.disconnect();
  }, [box, atEnd]);
}

/** Scroll as little as shows the whole row of another one that is chosen. */
function useShowChosen(box: Props["box"], chosen: Entry | null, place: number): void {
  // biome-ignore lint/correctness/useExhaustiveDependencies: only when another one is chosen
  useLayoutEffect(() => {
    if (box.current === null || place < 0) return;
    const { scrollTop, clientHeight } = box.current;
    box.current.scrollTop = Math.min(place * ROW, Math.max(scrollTop, (place + 1) * ROW - clientHeight));
  }, [chosen]);
}

interface SeenRowsProps extends Pick<Props, "box" | "chosen" | "onChoose"> {
  readonly shown: readonly Entry[];
}

function SeenRows({ shown, box, chosen, onChoose }: SeenRowsProps) {
  const count = shown.length;
  const virtualizer = useVirtualizer({
    count,
    getScrollElement: () => box.current,
    estimateSize: () => ROW,
    overscan: 12,
  });
  return (
    <div role="presentation" className="all" style={{ height: count * ROW }}>
      {virtualizer.getVirtualItems().map(({ index, start }) => {
        const entry = shown[index];
        if (entry === undefined) return null;
        const at = { start, index, count };
        return (
          <EventRow key={entry.seq} entry={entry} at={at} chosen={entry.seq === chosen?.seq} onChoose={onChoose} />
        );
      })}
    </div>
  );
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
      <time>{clock(timeOfId(entry.id) || entry.at)}</time>
      <span className="kind">{oneLine(entry.type, 60)}</span>
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
