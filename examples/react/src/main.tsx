// One session, shown in three ways: the integration guide's component with the guide's own client, the same component
// with only its import changed to the package's client, and the package's component.

import { MCPToolMonitor } from "agent-sse/react";
import "agent-sse/react/styles.css";
import { type ComponentType, useState } from "react";
import { createRoot } from "react-dom/client";
import GuideMonitor from "./guide/MCPToolMonitor";
import PackageMonitor from "./package/MCPToolMonitor";

const WAYS: Record<string, ComponentType<{ sessionId: string; token: string }>> = {
  "the guide's client": GuideMonitor,
  "the package's client": PackageMonitor,
  "the package's component": MCPToolMonitor,
};

function Example({ sessionId, token }: { sessionId: string; token: string }) {
  const [way, setWay] = useState("the guide's client");
  const Monitor = WAYS[way] ?? GuideMonitor;
  return (
    <>
      <nav>
        {Object.keys(WAYS).map((name) => (
          <button key={name} type="button" aria-pressed={name === way} onClick={() => setWay(name)}>
            {name}
          </button>
        ))}
      </nav>
      <Monitor key={way} sessionId={sessionId} token={token} />
    </>
  );
}

// The fragment of the URL never leaves the browser; the query would.
const fragment = new URLSearchParams(location.hash.slice(1));
const sessionId = fragment.get("session");
const token = fragment.get("token");
// Nor does the token stay in the address bar, from where it would be copied, and in the history.
history.replaceState(null, "", location.pathname + location.search);
const root = document.getElementById("root");
if (root) {
  createRoot(root).render(
    sessionId && token ? (
      <Example sessionId={sessionId} token={token} />
    ) : (
      <p>Open this page with #session=…&amp;token=…, as `agent-sse serve --dev` prints it.</p>
    ),
  );
}
