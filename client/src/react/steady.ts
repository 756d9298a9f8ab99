// Keeps a click from landing on what it was not meant for: how long a card has stood where it stands, and where the
// focus goes when cards come and leave.

import { type RefObject, useEffect, useLayoutEffect, useRef, useState } from "react";

/** A card that appeared or moved takes no answer for this long, milliseconds. */
export const SHIFT_GUARD = 500;

const LOOK = 100; // milliseconds

/** Follow where a card stands: `settled()` is exact at the moment it is called, `steady` is for showing. */
export function useSteady(card: RefObject<HTMLElement | null>): { steady: boolean; settled: () => boolean } {
  const place = useRef<{ top: number; since: number }>({ top: Number.NaN, since: 0 });
  const [steady, setSteady] = useState(false);
  const look = useRef(() => {
    const top = card.current === null ? Number.NaN : layoutTop(card.current);
    if (top !== place.current.top) place.current = { top, since: performance.now() };
    return performance.now() - place.current.since >= SHIFT_GUARD;
  });
  useLayoutEffect(() => {
    look.current();
  });
  useEffect(() => {
    const timer = setInterval(() => setSteady(look.current()), LOOK);
    return () => clearInterval(timer);
  }, []);
  return { steady, settled: look.current };
}

/** Where the layout puts an element, whatever is scrolled: a user who scrolls knows that things move. */
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
    if (fresh !== undefined && !busy(node)) focusHeading(node, fresh);
  }, [list, ids, enabled]);
}

function focusHeading(list: HTMLElement, id: string): void {
  for (const heading of list.querySelectorAll<HTMLElement>("[data-heading]")) {
    if (heading.dataset.heading === id) heading.focus();
  }
}
