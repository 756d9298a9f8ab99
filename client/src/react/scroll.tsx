// A box that scrolls and can be reached without a mouse, for JSON, diffs and long texts.

import { type ReactNode, type RefObject, useEffect, useRef, useState } from "react";
import type { Messages } from "./messages.js";

interface ScrollProps {
  readonly label: string;
  readonly children: ReactNode;
  /** For what has to be read to its end: tells below the box how much of it is still out of sight. */
  readonly texts?: Messages | undefined;
  readonly className?: string | undefined;
}

/** Named by `label` for screen readers; no landmark, of which a page with many calls would have too many. */
export function Scroll({ label, children, texts, className }: ScrollProps): ReactNode {
  const box = useRef<HTMLDivElement>(null);
  const { below, overflows } = useHidden(box);
  return (
    <>
      {/* biome-ignore lint/a11y/useSemanticElements: a fieldset is for what is filled in */}
      <div
        ref={box}
        className={["agent-sse-scroll", className].filter(Boolean).join(" ")}
        role="group"
        // biome-ignore lint/a11y/noNoninteractiveTabindex: what scrolls must be reachable by keyboard
        tabIndex={0}
        aria-label={label}
      >
        <div>{children}</div>
      </div>
      {texts !== undefined && overflows && (
        <p className="agent-sse-more" data-below={below}>
          {texts.linesBelow(below)}
        </p>
      )}
    </>
  );
}

/** Whether a box cannot show all it has, and how many lines are below what it shows. */
function useHidden(box: RefObject<HTMLDivElement | null>): { below: number; overflows: boolean } {
  const [hidden, setHidden] = useState({ below: 0, overflows: false });
  useEffect(() => {
    const node = box.current;
    const content = node?.firstElementChild;
    if (!node || !content) return;
    const look = () => {
      const overflows = node.scrollHeight > node.clientHeight + 1;
      const rest = node.scrollHeight - node.clientHeight - node.scrollTop;
      const line = Number.parseFloat(getComputedStyle(content.firstElementChild ?? content).lineHeight) || 20;
      const below = rest < 2 ? 0 : Math.ceil(rest / line - 0.5) || 1;
      setHidden((old) => (old.below === below && old.overflows === overflows ? old : { below, overflows }));
    };
    const sizes = new ResizeObserver(look);
    sizes.observe(node);
    sizes.observe(content);
    node.addEventListener("scroll", look, { passive: true });
    return () => {
      sizes.disconnect();
      node.removeEventListener("scroll", look);
    };
  }, [box]);
  return hidden;
}
