// One tab of a session: it writes down what its client says, for the test to read. `join` connects, and says no more.
import { AgentSSEError, type ClientOptions, type ReceivedEvent, SSEClient } from "agent-sse";

const seen: ReceivedEvent[] = [];
const phases: string[] = [];
const ends: unknown[] = [];

/** The numbers that came as results of events with an id: what `count` in the test published. */
const numbers = (): unknown[] =>
  seen.flatMap(({ id, type, data }) => (id && type === "tool_result" ? [(data as { result: unknown }).result] : []));

function join(session: string, token: string, options: ClientOptions): void {
  const client = new SSEClient(session, token, options);
  client.on("event", (event) => seen.push(event));
  client.on("state", ({ phase }) => phases.push(phase));
  client.on("end", (error) => ends.push(error && { code: error.code, status: error.status }));
  Object.assign(window, { client });
  client.connect();
}

/** Answer, and return what came of it: the result, or what the error says. */
async function answer(request: string, approved: boolean, reason: string): Promise<unknown> {
  try {
    return await (window as unknown as { client: SSEClient }).client.answer(request, { approved, reason });
  } catch (error) {
    if (!(error instanceof AgentSSEError)) throw error;
    return { code: error.code, status: error.status, data: error.data };
  }
}

Object.assign(window, { SSEClient, answer, ends, join, numbers, phases, seen });
