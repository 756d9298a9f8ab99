// One connection by a clock that the tests turn: what counts as a failure, what forgets it, and what waits.

import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { keepConnected } from "../src/connection.js";
import { AgentSSEError } from "../src/errors.js";
import { makeInbox } from "../src/inbox.js";
import { type Link, within } from "../src/link.js";
import type { ClientOptions, ConnectionState } from "../src/types.js";
import { HEARTBEAT } from "./gateway.js";

beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

const EXPIRED = 'data: {"type":"error","code":"token_expired","message":"expired"}\n\n';

/** A stream of `texts`, each said after its seconds, that ends with the last. */
function saying(...texts: [number, string][]): Response {
  const body = new ReadableStream<Uint8Array>({
    start(controller) {
      const end = Math.max(...texts.map(([seconds]) => seconds));
      for (const [seconds, text] of texts) {
        setTimeout(() => {
          try {
            controller.enqueue(new TextEncoder().encode(text));
            if (seconds === end) controller.close();
          } catch {} // nobody reads it any more
        }, 1000 * seconds);
      }
    },
  });
  return new Response(body, { headers: { "Content-Type": "text/event-stream", "Heartbeat-Interval": "15" } });
}

/** Keep connected by what `answer` gives for the `count`-th stream; `run` is how it ends. */
function connection(answer: (count: number) => Response, options: ClientOptions = {}) {
  const { signal, end } = within(new AbortController().signal);
  const phases: string[] = [];
  let count = 0;
  const call = async () => answer(++count);
  const token = () => "t";
  const link: Link = {
    http: { base: "", token, expire: () => true, call, send: call, data: async () => undefined },
    session: "s",
    options,
    inbox: makeInbox("1-0", () => {}),
    state: { phase: "idle", via: null, attempt: 0, retryAt: null, lastByteAt: null, error: null },
    beat: 15_000,
    set: (change) => {
      link.state = { ...link.state, ...change };
      if (change.phase && phases.at(-1) !== change.phase) phases.push(change.phase);
    },
  };
  const run = keepConnected(link, signal).catch((error: unknown) => error);
  return { link, run, end, phases, count: () => count };
}

const pass = (seconds: number) => vi.advanceTimersByTimeAsync(1000 * seconds);
const refused = () => {
  throw new AgentSSEError("network", "refused");
};

test("a gateway that ends every stream after half a minute never runs into the bound", async () => {
  const made = connection(() => saying([0, HEARTBEAT], [14, HEARTBEAT], [30, ""]), { maxReconnectAttempts: 4 });
  await pass(3600);
  expect(made.count()).toBeGreaterThan(60);
  expect(made.link.state.phase).not.toBe("ended");
  made.end("over");
  expect(await made.run).toBe("over");
});

test("a service that falls silent after its first byte does run into the bound", async () => {
  const made = connection(() => saying([0, HEARTBEAT], [10_000, ""]), { maxReconnectAttempts: 4 });
  await pass(600);
  expect(await made.run).toMatchObject({ code: "max_attempts", message: expect.stringContaining("no heartbeat") });
  expect(made.count()).toBe(5);
});

test("a renewal of the token is no failure, and made at once", async () => {
  const made = connection(() => saying([0, HEARTBEAT], [2, EXPIRED]), { maxReconnectAttempts: 3 });
  await pass(101);
  expect(made.count()).toBe(50 + 1);
  expect(made.link.state).toMatchObject({ phase: "open", attempt: 0 });
  made.end("over");
  await made.run;
});

test("a stream that ends without a network is tried again at once: the service may be on this machine", async () => {
  vi.stubGlobal("navigator", { onLine: false });
  const made = connection(() => saying([0, HEARTBEAT], [5, ""]));
  await pass(6);
  expect([made.count(), made.link.state.phase]).toEqual([2, "open"]);
  expect(made.phases).not.toContain("offline");
  made.end("over");
  await made.run;
});

test("without a network it tries again every maxReconnectDelay, and counts nothing", async () => {
  const navigator = { onLine: false };
  vi.stubGlobal("navigator", navigator);
  const answer = (count: number) => (count > 1 && count < 40 ? refused() : saying([0, HEARTBEAT], [5, ""]));
  const made = connection(answer, { maxReconnectAttempts: 2 });
  await pass(6);
  expect([made.count(), made.phases.at(-1)]).toEqual([2, "offline"]);
  await pass(10 * 30);
  expect(made.count()).toBe(12);
  expect(made.link.state).toMatchObject({ phase: "offline", retryAt: null });
  expect(made.phases.filter((phase) => phase === "offline").length).toBe(1);
  navigator.onLine = true;
  made.link.wake?.();
  await pass(0);
  expect(made.count()).toBe(13);
  expect(made.phases.slice(-2)).toEqual(["connecting", "waiting"]);
  made.end("over");
  await made.run;
});

test("who disconnects when told of the wait leaves no timer behind", async () => {
  const made = connection(refused, { reconnectDelay: 1_000_000, maxReconnectDelay: 1_000_000 });
  const { set } = made.link;
  made.link.set = (change: Partial<ConnectionState>) => {
    set(change);
    if (change.phase === "waiting") made.end("over");
  };
  await pass(0);
  expect(await made.run).toBe("over");
  expect(vi.getTimerCount()).toBe(0);
});
