// Questions to the service that belong to no connection, such as which sessions there are.

import { SSEClient } from "../src/client.js";

/** Asks below the service's prefix with the token; returns the answer's `data`, throws `AgentSSEError`. */
export type Ask = <T>(path: string, init?: { method?: string; body?: unknown; signal?: AbortSignal }) => Promise<T>;

/** Return what asks with this token; it opens no stream. */
export function asker(token: string, baseUrl: string): Ask {
  const client = new SSEClient("_", token, { baseUrl, shareTabs: false });
  return (path, init) => client.request(path, init);
}
