// A box that scrolls and can be reached without a mouse, for JSON and diffs.

import type { ReactNode } from "react";

/** Named by `label` for screen readers. */
export function Scroll({ label, children }: { label: string; children: ReactNode }): ReactNode {
  return (
    // biome-ignore lint/a11y/noNoninteractiveTabindex: what scrolls must be reachable by keyboard
    <section className="agent-sse-scroll" tabIndex={0} aria-label={label}>
      {children}
    </section>
  );
}
