// The package's client with all that it offers beside the guide's class: its events, states and end are written down.
import { AgentSSEError, type ClientOptions, SSEClient } from "agent-sse";
import { record } from "./recorder";

/** What of an error can be handed over to the test. */
const plain = (error: unknown) =>
  error instanceof AgentSSEError
    ? { code: error.code, status: error.status, retryAfter: error.retryAfter, message: error.message, data: error.data }
    : error === null
      ? null
      : { untyped: String(error) };

/** Make a client and connect it; `tokens` are what its `tokenProvider` gives, the last one again and again. */
function start(session: string, token: string, { tokens, ...options }: ClientOptions & { tokens?: string[] } = {}) {
  const asked: number[] = [];
  const tokenProvider = async () => {
    asked.push(Date.now());
    return tokens?.[Math.min(asked.length, tokens.length) - 1] ?? "";
  };
  const client = new SSEClient(session, token, { ...options, ...(tokens && { tokenProvider }) });
  const events: unknown[] = [];
  const states: unknown[] = [];
  const ends: unknown[] = [];
  client.on("event", ({ id, type, data }) => events.push({ id, type, data }));
  client.on("state", (state) => states.push({ ...state, error: plain(state.error) }));
  client.on("end", (error) => ends.push(plain(error)));
  Object.assign(window, { client, events, states, ends, asked, calls: record(client) });
  client.connect();
}

/** What a promise gives, or what its error says. */
const outcome = (promise: Promise<unknown>) =>
  promise.then(
    (value) => ({ value }),
    (error: unknown) => ({ error: plain(error) }),
  );

/** The results of the events of a session, in the order of their arrival. */
const results = (events: { type: string; id: string | null; data: { result: unknown } }[]) =>
  events.filter(({ type, id }) => type === "tool_result" && id !== null).map(({ data }) => data.result);

Object.assign(window, { AgentSSEError, SSEClient, start, outcome, results });
