// A box that scrolls and can be reached without a mouse, for JSON and diffs.

import type { ReactNode } from "react";

/** Named by `label` for screen readers; no landmark, of which a page with many calls would have too many. */
export function Scroll({ label, children }: { label: string; children: ReactNode }): ReactNode {
  return (
    // biome-ignore lint/a11y/noNoninteractiveTabindex: what scrolls must be reachable by keyboard
    // biome-ignore lint/a11y/useSemanticElements: a fieldset is for what is filled in
    <div className="agent-sse-scroll" role="group" tabIndex={0} aria-label={label}>
      {children}
    </div>
  );
}
