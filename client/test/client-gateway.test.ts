// The client behind a gateway that misbehaves, and before listeners, tokens and answers that do.

import { afterEach, expect, test, vi } from "vitest";
import { refusal } from "../src/errors.js";
import { AgentSSEError, type ReceivedEvent, SSEClient } from "../src/index.js";
import { ending, kept, next, phase } from "./events.js";
import { frame, Gateway, HEARTBEAT, json, stream } from "./gateway.js";

afterEach(() => {
  vi.restoreAllMocks();
  vi.unstubAllGlobals();
});

const result = (n: number) => ({ type: "tool_result", data: { result: n } });
const nth = (client: SSEClient, id: string) => next(client, "event", (event) => event.id === id);

/** Keep what is reported of a page's functions and of events, instead of writing it. */
function reports(): unknown[][] {
  const kept: unknown[][] = [];
  vi.spyOn(console, "error").mockImplementation((...values) => {
    kept.push(values);
  });
  return kept;
}

// --- what refuses ----------------------------------------------------------------------------------------------------

test.each([
  ["an ingress' 404 page", 404, "<h1>default backend - 404</h1>"],
  ["a 408 of a proxy", 408, ""],
  ["a gateway's own JSON", 404, '{"error": {"code": 404, "message": "no route"}}'],
])("%s is tried again", async (_, status, body) => {
  const gateway = new Gateway({
    events: (_, response, count) => (count === 1 ? response.writeHead(status).end(body) : stream(response)),
  });
  await gateway.serve(async (client) => {
    client.connect();
    await phase(client, "open");
    expect(gateway.of("events").length).toBe(2);
  });
});

test("a 4xx for which the service gives its reason is final", async () => {
  const gateway = new Gateway({
    events: (_, response) => json(response, 422, { success: false, message: "no", error: { code: "invalid_session" } }),
  });
  await gateway.serve(async (client) => {
    const end = ending(client);
    client.connect();
    expect(await end).toMatchObject({ code: "invalid_session", status: 422 });
    expect(gateway.of("events").length).toBe(1);
  });
});

test("Retry-After is read as seconds and as a date, and never negative", async () => {
  const after = async (value: string) =>
    (await refusal(new Response("", { status: 503, headers: { "Retry-After": value } }))).retryAfter;
  expect(await after("7")).toBe(7);
  const seconds = await after(new Date(Date.now() + 60_000).toUTCString());
  expect(seconds).toBeGreaterThan(50);
  expect(seconds).toBeLessThanOrEqual(60);
  for (const value of ["-5", "0", new Date(Date.now() - 60_000).toUTCString(), "soon"]) {
    expect(await after(value)).toBe(null);
  }
  expect((await refusal(new Response("", { status: 503 }))).retryAfter).toBe(null);
});

test.each([
  ["a line's end", "SECRET\nx"],
  ["what is no Latin-1", "SECRET…"],
])("a token with %s ends it as unauthorized, and is not in the error", async (_, token) => {
  for (const options of [{ token }, { token: "", tokenProvider: async () => token }]) {
    const gateway = new Gateway({});
    await gateway.serve(async (client) => {
      const end = ending(client);
      client.connect();
      const error = await end;
      expect(error).toMatchObject({ code: "unauthorized", status: null });
      expect(`${error.message} ${error.stack}`).not.toContain("SECRET");
      expect(gateway.asked).toEqual([]);
    }, options);
  }
});

// --- what the stream says --------------------------------------------------------------------------------------------

test("what is no event is reported without its text and skipped, and the cursor moves on", async () => {
  const bad = ["{SECRET", "null", "[]", "5", '"SECRET"', '{"type":5}', '{"type":null,"data":{}}', "{}"];
  const text = bad.map((data, n) => `id: ${n + 1}-0\ndata: ${data}\n\n`).join("");
  const said = reports();
  const gateway = new Gateway({ events: (_, response) => stream(response, text + frame("20-0", result(1)) + text) });
  await gateway.serve(async (client) => {
    const events = kept(client);
    const last = nth(client, "20-0");
    client.connect();
    await last;
    expect(events.map(({ id }) => id)).toEqual(["20-0"]);
    expect(said.length).toBe(bad.length);
    expect(JSON.stringify(said)).not.toContain("SECRET");
    expect(gateway.of("events").length).toBe(1);
  });
});

test("an event after which nothing comes moves the cursor though it is none", async () => {
  reports();
  const gateway = new Gateway({
    events: (_, response, count) => {
      stream(response, count === 1 ? "id: 7-0\ndata: {oops\n\n" : HEARTBEAT);
      if (count === 1) response.end();
    },
  });
  await gateway.serve(async (client) => {
    const beat = next(client, "event");
    client.connect();
    await beat;
    expect(gateway.of("events").map(({ headers }) => headers["last-event-id"])).toEqual([undefined, "7-0"]);
  });
});

test("no event passes by its type for what the client itself tells", async () => {
  const types = [
    "end",
    "state",
    "event",
    "open",
    "connection_open",
    "connectionOpen",
    "max_reconnect_attempts_reached",
  ];
  const text = types.map((type, n) => frame(`${n + 1}-0`, { type, data: { message: "x" } })).join("");
  const gateway = new Gateway({ events: (_, response) => stream(response, text) });
  await gateway.serve(async (client) => {
    const told: unknown[] = [];
    client.on("end", (value) => told.push(value));
    client.on("state", (value) => told.push(typeof value.phase));
    client.onMaxReconnectAttemptsReached = () => told.push("max");
    client.onConnectionOpen = (value) => told.push(value instanceof Event);
    const events = kept(client);
    const last = nth(client, `${types.length}-0`);
    client.connect();
    await last;
    expect(events.map(({ type }) => type)).toEqual(types);
    expect(told).toEqual(["string", "string", true]); // connecting, open
  });
});

test("the option heartbeatInterval counts, whatever the service says", async () => {
  const gateway = new Gateway({
    events: (_, response) => stream(response, HEARTBEAT, { "Heartbeat-Interval": "3600" }),
  });
  await gateway.serve(
    async (client) => {
      const waiting = next(client, "state", (state) => state.phase === "waiting");
      client.connect();
      expect((await waiting).error).toMatchObject({ code: "network", message: "no heartbeat" });
    },
    { heartbeatInterval: 50 },
  );
});

test("a stream that began without the cursor of the polls ends with its first byte, and begins anew with it", async () => {
  let second: (() => void) | undefined;
  let answer: (() => void) | undefined;
  const page = { events: [{ id: "1-0", ...result(1) }], last_event_id: "5-0", reset: null };
  const both = () => {
    if (!second || !answer) return; // the page comes when the stream is asked for
    answer();
    answer = undefined;
  };
  const gateway = new Gateway({
    events: (_, response, count) => {
      if (count === 2) second = () => stream(response, frame("1-0", result(1)));
      if (count > 2) stream(response);
      both();
    },
    poll: (_, response, count) => {
      if (count === 1) answer = () => json(response, 200, { success: true, data: page });
      both();
    },
  });
  const options = { streamTimeout: 1000, streamRetry: 1 };
  await gateway.serve(async (client) => {
    const events = kept(client);
    const polled = next(client, "state", (state) => state.via === "poll");
    const streamed = next(client, "state", (state) => state.via === "stream");
    client.connect();
    await polled;
    second?.();
    await streamed;
    expect(gateway.of("events").map(({ headers }) => headers["last-event-id"])).toEqual([undefined, undefined, "5-0"]);
    expect(events.map(({ id }) => id).filter(Boolean)).toEqual(["1-0"]);
  }, options);
});

// --- the page's functions --------------------------------------------------------------------------------------------

test("what a listener throws, or its promise, is reported and disturbs nobody", async () => {
  const said = reports();
  const gateway = new Gateway({
    events: (_, response) => stream(response, frame("1-0", result(1)) + frame("2-0", result(2))),
  });
  await gateway.serve(async (client) => {
    const results: unknown[] = [];
    client.onToolResult = ({ result }) => {
      throw new Error(`callback ${result}`);
    };
    client.onConnectionOpen = () => {
      throw new Error("open");
    };
    client.on("tool_result", async ({ result }) => {
      throw new Error(`promise ${result}`);
    });
    client.on("tool_result", ({ result }) => results.push(result));
    const last = nth(client, "2-0");
    client.connect();
    await last;
    await phase(client, "open");
    expect(results).toEqual([1, 2]);
    const messages = said.map(([error]) => (error as Error).message);
    expect(messages.sort()).toEqual(["callback 1", "callback 2", "open", "promise 1", "promise 2"]);
  });
});

test("where the page has a reportError it gets what a listener throws", async () => {
  const errors: unknown[] = [];
  vi.stubGlobal("reportError", (error: unknown) => errors.push((error as Error).message));
  const gateway = new Gateway({ events: (_, response) => stream(response, frame("1-0", result(1))) });
  await gateway.serve(async (client) => {
    client.onToolResult = () => {
      throw new Error("boom");
    };
    const last = nth(client, "1-0");
    client.connect();
    await last;
    expect(errors).toEqual(["boom"]);
  });
});

test("a listener that is removed by another one is called no more, and one that is added only for what follows", async () => {
  const gateway = new Gateway({
    events: (_, response) => stream(response, frame("1-0", result(1)) + frame("2-0", result(2))),
  });
  await gateway.serve(async (client) => {
    const heard: string[] = [];
    let off = () => {};
    const first = client.on("tool_result", (_, { id }) => {
      first();
      off();
      heard.push(`first ${id}`);
      client.on("tool_result", (_, { id }) => heard.push(`added ${id}`));
    });
    off = client.on("tool_result", () => heard.push("removed"));
    const last = nth(client, "2-0");
    client.connect();
    await last;
    expect(heard).toEqual(["first 1-0", "added 2-0"]);
  });
});

// --- answers ---------------------------------------------------------------------------------------------------------

test("an answer to nothing that was shown is not sent while connected", async () => {
  const gateway = new Gateway({
    events: (_, response) => stream(response),
    "permission-response": (_, response) => json(response, 200, { success: true }),
  });
  await gateway.serve(async (client) => {
    expect(await client.approvePermission(true)).toBe(true); // as the guide's class
    client.connect();
    expect(await client.approvePermission(true)).toBe(false);
    await phase(client, "open");
    expect(await client.approvePermission(true)).toBe(false);
    expect(await client.approvePermission(true, "", "r1")).toBe(true);
    const ids = gateway.of("permission-response").map(({ body }) => JSON.parse(body).request_id);
    expect(ids).toEqual([undefined, "r1"]);
  });
});

test("an answer that fails lets no double click of another one through", async () => {
  let fail: (() => void) | undefined;
  let succeed: (() => void) | undefined;
  const gateway = new Gateway({
    "permission-response": (_, response, count) => {
      if (count === 1) fail = () => json(response, 409, { success: false });
      else succeed = () => json(response, 200, { success: true });
      if (count === 2) fail?.();
    },
  });
  await gateway.serve(async (client) => {
    const first = client.approvePermission(true, "", "r1");
    await vi.waitFor(() => expect(fail).toBeDefined());
    const second = client.approvePermission(true, "", "r2");
    expect(await first).toBe(false);
    const again = client.approvePermission(true, "", "r2");
    expect(again).toBe(second);
    succeed?.();
    expect(await again).toBe(true);
    expect(gateway.of("permission-response").length).toBe(2);
  });
});

test("approvePermission and checkHealth never throw, and request throws AgentSSEError only", async () => {
  const gateway = new Gateway({
    "permission-response": (_, response) => json(response, 200, null),
    health: (_, response) => response.end("<html>"),
    rows: (_, response) => json(response, 200, null),
  });
  await gateway.serve(async (client) => {
    expect(await client.approvePermission(true, "", "r1")).toBe(false);
    expect(await client.checkHealth()).toBe(null);
    const circular: Record<string, unknown> = {};
    circular.self = circular;
    for (const body of [undefined, circular, { n: 1n }]) {
      await expect(client.request("/rows", { body })).rejects.toBeInstanceOf(AgentSSEError);
    }
  });
  const tokenProvider = () => {
    throw new Error("synchronous");
  };
  const client = new SSEClient("s", "", { baseUrl: "http://127.0.0.1:1/p", tokenProvider });
  expect(await client.approvePermission(true, "", "r1")).toBe(false);
  expect(await client.checkHealth()).toBe(null);
  await expect(client.request("/rows")).rejects.toBeInstanceOf(AgentSSEError);
});

// --- where tabs cannot share -----------------------------------------------------------------------------------------

test("with Web Locks and BroadcastChannel, but no page, a client is alone", async () => {
  const locks = { request: () => Promise.reject(new Error("not here")) };
  vi.stubGlobal("navigator", { locks }); // as in Node 24
  const token = `e30.${Buffer.from('{"sub":"alice"}').toString("base64url")}.c2ln`;
  const gateway = new Gateway({ events: (_, response) => stream(response) });
  await gateway.serve(
    async (client) => {
      const events: ReceivedEvent[] = kept(client);
      client.connect();
      await phase(client, "open");
      expect(client.state.via).toBe("stream");
      await vi.waitFor(() => expect(events.length).toBe(1));
    },
    { token },
  );
});
