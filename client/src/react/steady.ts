// Keeps a click from landing on what it was not meant for: how long a card has stood where it stands, and where the
// focus goes when cards come and leave.

import { type RefObject, useCallback, useEffect, useLayoutEffect, useRef, useState } from "react";

/** A card that appeared or moved takes no answer for this long, milliseconds. */
export const SHIFT_GUARD = 500;

const LOOK = 100; // milliseconds

/** Whether a card stands still. */
export interface Steady {
  /** For showing; up to 100 ms late. */
  readonly steady: boolean;
  /**
   * Exact at the moment it is called. A pointer presses what is below it: for that nothing may have moved on the screen,
   * by scrolling neither. Any other press is meant for what has the focus, wherever that is scrolled to.
   */
  readonly settled: (byPointer: boolean) => boolean;
}

/** Follow where a card stands. */
export function useSteady(card: RefObject<HTMLElement | null>): Steady {
  const [steady, setSteady] = useState(false);
  const [look] = useState(() => watched(card));
  useLayoutEffect(() => {
    look();
  });
  useEffect(() => {
    const show = () => setSteady(look().onScreen);
    const timer = setInterval(show, LOOK);
    document.addEventListener("scroll", show, { capture: true, passive: true });
    return () => {
      clearInterval(timer);
      document.removeEventListener("scroll", show, { capture: true });
    };
  }, [look]);
  const settled = useCallback((byPointer: boolean) => look()[byPointer ? "onScreen" : "inLayout"], [look]);
  return { steady, settled };
}

/** Returns what looks whether a card has stood long enough where it is: in its page, and on the screen. */
function watched(card: RefObject<HTMLElement | null>): () => { inLayout: boolean; onScreen: boolean } {
  const inLayout = resting();
  const onScreen = resting();
  return () => {
    const node = card.current;
    return {
      inLayout: inLayout(node === null ? Number.NaN : layoutTop(node)),
      onScreen: onScreen(node === null ? Number.NaN : node.getBoundingClientRect().top),
    };
  };
}

/** Returns what is told a place, in pixels, and tells whether it has been there for `SHIFT_GUARD`. */
function resting(): (top: number) => boolean {
  let place = Number.NaN;
  let since = 0;
  return (top) => {
    if (!(Math.abs(top - place) < 1)) {
      place = top;
      since = performance.now();
    }
    return performance.now() - since >= SHIFT_GUARD;
  };
}

/** Where the layout puts an element, whatever is scrolled. */
function layoutTop(element: HTMLElement): number {
  let top = 0;
  for (let node: Element | null = element; node instanceof HTMLElement; node = node.offsetParent) top += node.offsetTop;
  return top;
}

const WRITING = "input, textarea, select, [role=textbox], iframe, [data-request] *"; // what an iframe has is not known

/** Whether the user is writing, choosing an answer, or in a dialog above the list: then nothing takes the focus away. */
function busy(list: HTMLElement): boolean {
  let active = document.activeElement;
  while (active?.shadowRoot?.activeElement) active = active.shadowRoot.activeElement;
  if (!(active instanceof HTMLElement) || active === document.body) return false;
  const modal = active.closest("dialog[open], [aria-modal=true]");
  return active.matches(WRITING) || active.isContentEditable || (modal !== null && !modal.contains(list));
}

/**
 * Move the focus to the heading of a request that comes, and on to the next one, or to the list's heading, when the
 * card that had it leaves. Headings bear `data-heading` with the request's id, the list's own an empty one.
 */
export function useRequestFocus(list: RefObject<HTMLElement | null>, ids: readonly string[], enabled: boolean): void {
  const known = useRef<readonly string[]>([]);
  const held = useRef<string | null>(null);
  useEffect(() => {
    const node = list.current;
    if (node === null) return;
    const follow = (event: FocusEvent) => {
      const card = event.target instanceof Element ? event.target.closest("[data-request]") : null;
      held.current = card?.getAttribute("data-request") ?? null;
    };
    document.addEventListener("focusin", follow);
    return () => document.removeEventListener("focusin", follow);
  }, [list]);
  useEffect(() => {
    const before = known.current;
    known.current = ids;
    const node = list.current;
    if (node === null || !enabled) return;
    const left = held.current !== null && !ids.includes(held.current) ? held.current : null;
    if (left !== null) {
      held.current = null;
      const at = before.indexOf(left);
      const next = before.slice(at + 1).find((id) => ids.includes(id)) ?? ids.at(-1) ?? "";
      focusHeading(node, next);
      return;
    }
    const fresh = ids.find((id) => !before.includes(id));
    // Who looks at another card keeps it before the eyes: the new one is announced, and Tab leads to it.
    if (fresh !== undefined && !busy(node))
      focusHeading(
        node,
        fresh,
        before.some((id) => inSight(node, id)),
      );
  }, [list, ids, enabled]);
}

function focusHeading(list: HTMLElement, id: string, preventScroll = false): void {
  for (const heading of list.querySelectorAll<HTMLElement>("[data-heading]")) {
    if (heading.dataset.heading === id) heading.focus({ preventScroll });
  }
}

/** Whether any of a request's card is to be seen in the window, and in all that scrolls around it. */
function inSight(list: HTMLElement, id: string): boolean {
  const cards = [...list.querySelectorAll<HTMLElement>("[data-request]")];
  const card = cards.find((one) => one.dataset.request === id);
  if (card === undefined) return false;
  let { top, bottom } = card.getBoundingClientRect();
  top = Math.max(top, 0);
  bottom = Math.min(bottom, window.innerHeight);
  for (let node = card.parentElement; node !== null && node !== document.documentElement; node = node.parentElement) {
    if (getComputedStyle(node).overflowY === "visible") continue;
    const box = node.getBoundingClientRect();
    top = Math.max(top, box.top);
    bottom = Math.min(bottom, box.bottom);
  }
  return bottom > top;
}
