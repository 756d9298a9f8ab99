// The package's own component in an application: beside a field that the user writes into, and with the hooks when asked.
// The fragment says `session`, `token`, `props` (JSON) and `with`: a comma-separated list of `strict`, `hooks`, `provider`.
import {
  type Decision,
  MCPToolMonitor,
  type MCPToolMonitorProps,
  useAgentSession,
  usePermissionRequests,
  useToolEvents,
} from "agent-sse/react";
import "agent-sse/react/styles.css";
import { StrictMode, useState } from "react";
import { createRoot } from "react-dom/client";

declare global {
  interface Window {
    /** What `onDecision` was called with. */
    decisions: Decision[];
    /** What `tokenProvider` gives; the test sets it. */
    nextToken: string;
    tokensAsked: number;
    setToken: (token: string) => void;
    unmount: () => void;
  }
}

const fragment = new URLSearchParams(location.hash.slice(1));
const sessionId = fragment.get("session") ?? "";
const firstToken = fragment.get("token") ?? "";
const props = JSON.parse(fragment.get("props") ?? "{}") as Partial<MCPToolMonitorProps>;
const parts = new Set((fragment.get("with") ?? "").split(","));

window.decisions = [];
window.tokensAsked = 0;

async function tokenProvider(): Promise<string> {
  window.tokensAsked += 1;
  return window.nextToken;
}

/** What the hooks give, in words. */
function Hooks({ token }: { token: string }) {
  const { calls, lastEvent } = useToolEvents(sessionId, token);
  const { requests, answer, error } = usePermissionRequests(sessionId, token);
  const { connection } = useAgentSession(sessionId, token);
  return (
    <div id="hooks">
      <p>{`${connection.phase}; ${calls.map((call) => call.tool)}; ${requests.length}; ${lastEvent?.type}; ${error?.message}`}</p>
      {requests.map((request) => (
        <button type="button" key={request.id} onClick={() => answer(request.id, { approved: false, reason: "a hook" })}>
          hook denies {request.tool}
        </button>
      ))}
    </div>
  );
}

function Application() {
  const [token, setToken] = useState(firstToken);
  window.setToken = setToken;
  return (
    <>
      <h1>An application</h1>
      <label className="elsewhere">
        Elsewhere <input />
      </label>
      <h2>Its agent</h2>
      <MCPToolMonitor
        sessionId={sessionId}
        token={token}
        onDecision={(decision) => window.decisions.push(decision)}
        {...(parts.has("provider") ? { tokenProvider } : {})}
        {...props}
      />
      {parts.has("hooks") && <Hooks token={token} />}
    </>
  );
}

const root = createRoot(document.getElementById("root") as HTMLElement);
window.unmount = () => root.unmount();
root.render(parts.has("strict") ? <StrictMode children={<Application />} /> : <Application />);
