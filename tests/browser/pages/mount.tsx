// Shows a monitor for the session and token of the page's fragment (`#session=s1&token=…`), as an application would.
import type { ComponentType } from "react";
import { createRoot } from "react-dom/client";

export function mount(Monitor: ComponentType<{ sessionId: string; token: string }>): void {
  const fragment = new URLSearchParams(location.hash.slice(1));
  const root = document.getElementById("root");
  if (root === null) throw new Error("the page has no #root");
  createRoot(root).render(<Monitor sessionId={fragment.get("session") ?? ""} token={fragment.get("token") ?? ""} />);
}
