// What the tests wait for and how: the events of a client, never a time.

import type { AgentSSEError, ClientEvents, ReceivedEvent, SSEClient } from "../src/index.js";

/** Resolve with the next value of `type` for which `wanted` holds. */
export function next<K extends keyof ClientEvents>(
  client: SSEClient,
  type: K,
  wanted: (value: ClientEvents[K]) => boolean = () => true,
): Promise<ClientEvents[K]> {
  return new Promise((resolve) => {
    const off = client.on(type, (value) => {
      if (!wanted(value)) return;
      off();
      resolve(value);
    });
  });
}

/** Resolve when the client is in `phase`, at once if it is. */
export async function phase(client: SSEClient, wanted: SSEClient["state"]["phase"]): Promise<void> {
  if (client.state.phase !== wanted) await next(client, "state", (state) => state.phase === wanted);
}

/** Resolve when a published event with this number in its parameters has come. */
export const numbered = (client: SSEClient, n: number) =>
  next(client, "event", (event) => numbers([event])[0] === n) as Promise<ReceivedEvent>;

/** Resolve with the error that ends the client. */
export const ending = (client: SSEClient) => next(client, "end") as Promise<AgentSSEError>;

/** The event that `numbers` finds again. */
export const status = (n: number) => ({
  type: "tool_status",
  data: { tool_name: "count", tool_call_id: `c${n}`, status: "completed", details: { parameters: { n } } },
});

/** The numbers of the published events among `events`, in order. */
export const numbers = (events: ReceivedEvent[]): number[] =>
  events
    .filter((event) => event.type === "tool_status" && event.id)
    .map((event) => (event as ReceivedEvent<"tool_status">).data.details.parameters as { n: number })
    .map(({ n }) => n);

/** Keep every event of a client. */
export function kept(client: SSEClient): ReceivedEvent[] {
  const events: ReceivedEvent[] = [];
  client.on("event", (event) => events.push(event));
  return events;
}
