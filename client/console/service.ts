// Questions to the service that belong to no connection: sessions, health, remembered answers, audit. Their numbers
// keep every digit, which the client's own `request()` would round.

import { AgentSSEError, refusal } from "../src/errors.js";
import { isObject, parseExact } from "../src/text.js";

const TIMEOUT = 15_000; // milliseconds

/** Asks below the service's prefix with the token; returns the answer's `data`, throws `AgentSSEError`. */
export type Ask = <T>(path: string, init?: { method?: "GET" | "DELETE"; signal?: AbortSignal }) => Promise<T>;

/** Return what asks with this token. */
export function asker(token: string, baseUrl: string): Ask {
  return async <T>(path: string, { method = "GET", signal }: Parameters<Ask>[1] = {}) => {
    const limit = AbortSignal.timeout(TIMEOUT);
    const response = await fetch(baseUrl + path, {
      method,
      headers: { Authorization: `Bearer ${token}` },
      cache: "no-store",
      credentials: "omit",
      signal: signal ? AbortSignal.any([signal, limit]) : limit,
    });
    if (!response.ok) throw await refusal(response);
    const answer = parseExact(await response.text());
    if (!isObject(answer)) throw new AgentSSEError("network", "what answered is not the service", response.status);
    return answer.data as T;
  };
}
