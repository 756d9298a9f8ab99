// The inbox: cursors compared as pairs of integers, nothing twice, which requests are open; and tokens' claims.

import { expect, test } from "vitest";
import { backoff } from "../src/connection.js";
import { AgentSSEError } from "../src/errors.js";
import { isAfter, makeInbox } from "../src/inbox.js";
import { claimsOf } from "../src/tabs.js";
import type { ReceivedEvent } from "../src/types.js";

function inbox(cursor: string | null = null) {
  const events: ReceivedEvent[] = [];
  const previous: (string | null)[] = [];
  const repeats: ReceivedEvent[] = [];
  const made = makeInbox(cursor, (event, before, again) => {
    if (again) repeats.push(event);
    else {
      events.push(event);
      previous.push(before);
    }
  });
  return { made, events, previous, repeats };
}

const asked = (id: string) => JSON.stringify({ type: "permission_request", data: { request_id: id } });
const cleared = (id: string | null) => JSON.stringify({ type: "permission_cleared", data: { request_id: id } });
const happened = '{"type":"tool_status","data":{}}';

test("event ids are compared as pairs of integers", () => {
  const ids = ["0-0", "0-9", "0-10", "9-0", "10-0", "1795649334654-2", "1795649334654-10", "18446744073709551615-0"];
  for (const [i, a] of ids.entries()) {
    for (const [j, b] of ids.entries()) expect(isAfter(a, b), `${a} after ${b}`).toBe(i > j);
  }
  expect(isAfter("0-0", null)).toBe(true);
  expect(isAfter(null, "0-0")).toBe(false);
});

test("what came before is dropped, and the cursor goes forward only", () => {
  const { made, events, previous } = inbox("5-0");
  for (const id of ["4-0", "5-0", "6-0", "6-0", "5-9", "7-0"]) made.take(id, happened);
  expect(events.map((event) => event.id)).toEqual(["6-0", "7-0"]);
  expect(previous).toEqual(["5-0", "6-0"]);
  made.prime("6-5");
  expect(made.cursor).toBe("7-0");
  made.prime("8-0");
  expect(made.cursor).toBe("8-0");
});

test("a reset forgets the cursor, also for a lower one, and says everything anew", () => {
  const { made, events } = inbox();
  made.take(null, asked("r1"));
  made.prime("9-0");
  made.take(null, '{"type":"stream_reset","data":{"reason":"history_lost"}}');
  expect(made.cursor).toBe(null);
  made.take(null, asked("r1"));
  made.prime("2-0");
  expect(made.cursor).toBe("2-0");
  expect(events.map((event) => event.type)).toEqual(["permission_request", "stream_reset", "permission_request"]);
});

test("an open request that is said again is a repeat, and a settled one nothing", () => {
  const { made, events, repeats } = inbox();
  made.take("1-0", asked("r1"));
  made.take(null, asked("r1"));
  made.take("2-0", cleared("r1"));
  made.take(null, asked("r1"));
  expect([events.length, repeats.length]).toEqual([2, 1]);
});

test("the request shown is the one that was delivered last, as on a page with one card", () => {
  const { made } = inbox();
  expect(made.shown).toBe(undefined);
  made.take("1-0", asked("r1"));
  made.take("2-0", asked("r2"));
  expect(made.shown).toBe("r2");
  made.take(null, asked("r1"));
  expect(made.shown).toBe("r1");
  made.take("3-0", cleared("r1"));
  made.take(null, asked("r1"));
  expect(made.shown).toBe("r1");
  made.take(null, asked("r2"));
  expect(made.shown).toBe("r2");
});

test("what is remembered of requests is bounded", () => {
  const { made, events } = inbox();
  for (let n = 0; n < 1500; n++) made.take(null, asked(`r${n}`));
  made.take(null, asked("r500"));
  expect(events.length).toBe(1500);
  made.take(null, asked("r499"));
  expect(events.length).toBe(1501);
});

test("heartbeats and errors have their fields at the top, and no id beside a heartbeat counts", () => {
  const { made, events } = inbox();
  made.take("4-0", '{"type":"heartbeat","timestamp":1.5}');
  made.take("5-0", '{"type":"error","message":"m","code":"c"}');
  expect(events).toMatchObject([
    { id: null, type: "heartbeat", data: { timestamp: 1.5 } },
    { id: "5-0", type: "error", data: { message: "m", code: "c" } },
  ]);
  expect(made.cursor).toBe("5-0");
});

test.each([
  ["token_expired", "unauthorized"],
  ["session_closed", "session_closed"],
  ["unavailable", "unavailable"],
])("the stream's last word %s is told, then thrown as %s", (code, thrown) => {
  const { made, events } = inbox();
  expect(() => made.take(null, JSON.stringify({ type: "error", message: "m", code }))).toThrow(
    expect.objectContaining({ code: thrown, status: null }),
  );
  expect(events.length).toBe(1);
});

test("the wait before another attempt is jittered, doubles, is capped and honours Retry-After", () => {
  const waits = (attempt: number, retryAfter: number | null = null) =>
    Array.from({ length: 200 }, () =>
      backoff(attempt, 1000, 30_000, new AgentSSEError("limited", "", 429, retryAfter)),
    );
  for (const [attempt, most] of [
    [1, 1000],
    [3, 4000],
    [9, 30_000],
    [500, 30_000],
  ] as const) {
    const made = waits(attempt);
    expect(Math.max(...made)).toBeLessThanOrEqual(most);
    expect(Math.max(...made)).toBeGreaterThan(most / 2);
    expect(Math.min(...made)).toBeLessThan(most / 2);
  }
  expect(Math.min(...waits(1, 7))).toBeGreaterThanOrEqual(7000);
  expect(Math.max(...waits(1, 1e9))).toBeLessThanOrEqual(301_000);
});

test("a token's claims are read, and nothing of what is no token", () => {
  const encoded = (claims: object) => `e30.${Buffer.from(JSON.stringify(claims)).toString("base64url")}.c2ln`;
  expect(claimsOf(encoded({ sub: "alice>>>???", exp: 5 }))).toEqual({ sub: "alice>>>???", exp: 5 });
  for (const token of ["", "a", "a.b.c", "a.!.c", "opaque-ticket"]) expect(claimsOf(token)).toEqual({});
});
