// The client against the real service, in Node: every event, answers, resuming, typed ends, the iterator.

import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { AgentSSEError, type ClientOptions, type ReceivedEvent, SSEClient } from "../src/index.js";
import { ending, kept, next, numbered, numbers, phase, status } from "./events.js";
import { Service } from "./service.js";

let service: Service;
const clients: SSEClient[] = [];
let sessions = 0;

beforeAll(async () => {
  service = await new Service().start();
});
afterAll(() => service.close());
afterEach(() => {
  for (const client of clients.splice(0)) client.disconnect();
});

const newSession = () => `s${++sessions}`;

function client(session: string, token: string, options: ClientOptions = {}): SSEClient {
  const made = new SSEClient(session, token, { baseUrl: service.base, reconnectDelay: 50, ...options });
  clients.push(made);
  return made;
}

async function opened(session: string, options: ClientOptions = {}): Promise<SSEClient> {
  const made = client(session, service.token(session), options);
  made.connect();
  await phase(made, "open");
  return made;
}

test("the guide's callbacks get the events' data, and the connection opens with an Event", async () => {
  const session = newSession();
  const agent = service.agent(session);
  const made = client(session, service.token(session));
  const calls: unknown[] = [];
  const opening = new Promise<Event>((resolve) => {
    made.onConnectionOpen = resolve;
  });
  made.onToolStatusChange = (data) => calls.push(["status", data.tool_name]);
  made.onToolResult = (data) => calls.push(["result", data.result]);
  made.onError = (message) => calls.push(["error", message]);
  const heartbeat = new Promise<number>((resolve) => {
    made.onHeartbeat = resolve;
  });
  const snapshot = next(made, "event", (event) => event.type === "permission_cleared"); // its last event
  const over = next(made, "event", (event) => event.type === "error");
  made.connect();
  expect((await opening) instanceof Event).toBe(true);
  expect(typeof (await heartbeat)).toBe("number");
  await snapshot;
  await agent(`/publish/${session}`, { type: "tool_status", data: { tool_name: "a", status: "executing" } });
  await agent(`/publish/${session}`, {
    type: "tool_result",
    data: { tool_name: "a", result: { n: 5 }, success: true },
  });
  await agent(`/publish/${session}`, { type: "error", message: "the model is away", code: "model_unavailable" });
  await over;
  expect(calls).toEqual([
    ["status", "a"],
    ["result", { n: 5 }],
    ["error", "the model is away"],
  ]);
});

test("an event's raw text has every digit of a large number", async () => {
  const session = newSession();
  const made = await opened(session);
  const arrival = next(made, "event", (event) => event.type === "tool_result");
  const token = service.token(session, { sub: "agent", scope: "events:publish" });
  await fetch(`${service.base}/publish/${session}`, {
    method: "POST",
    headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json" },
    body: '{"type":"tool_result","data":{"tool_name":"a","success":true,"result":12345678901234567890}}',
  });
  expect((await arrival) as ReceivedEvent).toMatchObject({ raw: expect.stringContaining("12345678901234567890") });
});

test("a request is answered by its id, and a double click sends once", async () => {
  const session = newSession();
  const agent = service.agent(session);
  const made = await opened(session);
  const arrival = next(made, "event", (event) => event.type === "permission_request");
  const asked = agent(`/permission-request/${session}?wait=30`, {
    tool_name: "edit",
    parameters: {},
    risk_level: "high",
    timeout: 60,
  });
  await arrival;
  const clicks = [made.approvePermission(true, "fine"), made.approvePermission(true, "fine")];
  expect(clicks[0]).toBe(clicks[1]);
  expect(await Promise.all(clicks)).toEqual([true, true]);
  expect((await (await asked).json()).data).toMatchObject({ approved: true, reason: "fine" });
  expect(await made.approvePermission(true, "fine")).toBe(true);
  expect(await made.approvePermission(false)).toBe(false); // it stays approved
});

test("an answer that loses throws the decision that won", async () => {
  const session = newSession();
  const agent = service.agent(session);
  const made = await opened(session);
  const arrival = next(made, "event", (event) => event.type === "permission_request");
  agent(`/permission-request/${session}`, { tool_name: "edit", parameters: {}, risk_level: "low", timeout: 60 });
  const { request_id } = ((await arrival) as ReceivedEvent<"permission_request">).data;
  expect(await made.answer(request_id, { approved: false, reason: "no" })).toMatchObject({
    request_id,
    approved: false,
  });
  const error = await made.answer(request_id, { approved: true }).catch((thrown: unknown) => thrown);
  expect(error).toBeInstanceOf(AgentSSEError);
  expect(error).toMatchObject({ status: 409, code: "already_resolved", data: { approved: false } });
});

test("approvePermission and checkHealth never throw", async () => {
  const made = client("s", "t", { baseUrl: "http://127.0.0.1:1" });
  expect(await made.approvePermission(true)).toBe(false);
  expect(await made.checkHealth()).toBe(null);
  const session = newSession();
  const here = client(session, service.token(session));
  expect(await here.approvePermission(true)).toBe(false);
  expect((await here.checkHealth()).data.session_id).toBe(session);
  expect((await client(session, "bad").checkHealth()).success).toBe(false);
});

test("request returns the body's data and throws typed errors", async () => {
  const session = newSession();
  const made = client(session, service.token(session));
  const found = await made.request<{ sessions: { session_id: string }[] }>("/sessions");
  expect(found.sessions.map((row) => row.session_id)).toEqual([session]);
  await expect(made.cancelCall("none")).rejects.toMatchObject({ status: 404, code: "unknown_call" });
});

test.each([
  ["a bad token", "unauthorized", 401, () => "bad"],
  ["a token for another session", "forbidden", 403, () => service.token("another")],
])("%s ends the connection with %s", async (_, code, number, token) => {
  const made = client(newSession(), token());
  const messages: string[] = [];
  made.onError = (message) => messages.push(message);
  made.connect();
  const error = await ending(made);
  expect(error).toBeInstanceOf(AgentSSEError);
  expect(error).toMatchObject({ code, status: number });
  expect(messages).toEqual([error.message]);
  expect(made.state).toMatchObject({ phase: "ended", error });
  const ends: unknown[] = [];
  made.on("end", (again) => ends.push(again));
  made.disconnect();
  expect(made.state.phase).toBe("idle");
  expect(ends).toEqual([]);
});

test("a refused token is renewed once, by one call however many need it", async () => {
  const session = newSession();
  let calls = 0;
  const made = client(session, "bad", {
    tokenProvider: () => {
      calls++;
      return Promise.resolve(service.token(session));
    },
  });
  const [health] = await Promise.all([made.checkHealth(), made.request("/sessions")]);
  expect(health.success).toBe(true);
  made.connect();
  await phase(made, "open");
  expect(calls).toBe(1);
});

test("a second refusal in a row ends it", async () => {
  let calls = 0;
  const made = client(newSession(), "", {
    tokenProvider: async () => {
      calls++;
      return "bad";
    },
  });
  made.connect();
  expect(await ending(made)).toMatchObject({ code: "unauthorized", status: 401 });
  expect(calls).toBe(2);
});

test("a token that expires while streaming ends it, or is renewed at once", async () => {
  const strict = await new Service({ AGENT_SSE_JWT_LEEWAY: "0" }).start();
  try {
    const ended = client("s", strict.token("s", { ttl: 3 }), { baseUrl: strict.base });
    const renewed = client("s", strict.token("s", { ttl: 3 }), {
      baseUrl: strict.base,
      tokenProvider: async () => strict.token("s"),
    });
    const messages: string[] = [];
    ended.onError = (message) => messages.push(message);
    const end = ending(ended);
    const again = next(renewed, "state", (state) => state.phase === "waiting").then(() => phase(renewed, "open"));
    ended.connect();
    renewed.connect();
    const error = await end;
    expect(error).toMatchObject({ code: "unauthorized", status: null });
    expect(messages).toEqual([error.message]);
    await again;
  } finally {
    await strict.close();
  }
});

test("a full service is retried after Retry-After", async () => {
  const small = await new Service({ AGENT_SSE_MAX_STREAMS_PER_SESSION: "1" }).start();
  try {
    const first = client("s", small.token("s"), { baseUrl: small.base });
    first.connect();
    await phase(first, "open");
    const second = client("s", small.token("s"), { baseUrl: small.base });
    second.connect();
    const { error, retryAt } = await next(second, "state", (state) => state.phase === "waiting");
    expect(error).toMatchObject({ code: "limited", status: 429 });
    expect(retryAt).toBeGreaterThan(Date.now());
    first.disconnect();
    await phase(second, "open");
  } finally {
    await small.close();
  }
});

test("attempts are bounded, and connect() begins anew", async () => {
  const made = client("s", "t", { baseUrl: "http://127.0.0.1:1", maxReconnectAttempts: 2, reconnectDelay: 1 });
  let reached = 0;
  made.onMaxReconnectAttemptsReached = () => {
    reached++;
  };
  made.connect();
  expect(await ending(made)).toMatchObject({ code: "max_attempts" });
  expect(reached).toBe(1);
  made.connect();
  expect(made.state).toMatchObject({ phase: "connecting", attempt: 0, error: null });
  await ending(made);
  expect(reached).toBe(2);
});

test("a restart of the service loses nothing and doubles nothing", async () => {
  const own = await new Service().start();
  try {
    const agent = own.agent("s");
    const made = client("s", own.token("s"), {
      baseUrl: own.base,
      maxReconnectAttempts: 1000,
      maxReconnectDelay: 200,
    });
    const events = kept(made);
    made.connect();
    await next(made, "event", (event) => event.type === "permission_cleared");
    for (let n = 0; n < 20; n++) await agent("/publish/s", status(n));
    await own.restart();
    const last = numbered(made, 39);
    for (let n = 20; n < 40; n++) await agent("/publish/s", status(n));
    await last;
    expect(numbers(events)).toEqual(Array.from({ length: 40 }, (_, n) => n));
  } finally {
    await own.close();
  }
});

test("disconnect keeps the cursor, and connect goes on after it", async () => {
  const session = newSession();
  const agent = service.agent(session);
  const made = await opened(session, { lastEventId: "0-0" });
  const events = kept(made);
  const first = numbered(made, 1);
  await agent(`/publish/${session}`, status(1));
  await first;
  made.disconnect();
  expect(made.state.phase).toBe("idle");
  await agent(`/publish/${session}`, status(2));
  const second = numbered(made, 2);
  made.connect();
  await second;
  expect(numbers(events)).toEqual([1, 2]);
  expect(made.lastEventId).toBe(events.findLast((event) => event.id)?.id);
});

test("a lost cursor is told by a stream_reset", async () => {
  const session = newSession();
  const made = client(session, service.token(session), { lastEventId: "5-5" });
  const reset = next(made, "event", (event) => event.type === "stream_reset");
  made.connect();
  expect((await reset).data).toMatchObject({ reason: "history_expired" });
});

test("an open request is delivered once, though heartbeats say it again, and anew after a snapshot", async () => {
  const session = newSession();
  const agent = service.agent(session);
  await agent(`/permission-request/${session}`, {
    tool_name: "edit",
    parameters: {},
    risk_level: "low",
    timeout: 60,
    idempotency_key: "k",
  });
  const made = client(session, service.token(session));
  const events = kept(made);
  const requests = () => events.filter((event) => event.type === "permission_request").length;
  const shown: string[] = [];
  made.onPermissionRequest = (request) => shown.push(request.request_id);
  made.connect();
  await next(made, "event", (event) => event.type === "permission_request");
  await next(made, "event", (event) => event.type === "heartbeat");
  await next(made, "event", (event) => event.type === "heartbeat");
  expect(requests()).toBe(1);
  // The guide's callback is told each time: its component may have erased its one card.
  expect(shown.length).toBeGreaterThan(1);
  expect(new Set(shown).size).toBe(1);
});

test("the iterator yields every event, and ends with disconnect", async () => {
  const session = newSession();
  const agent = service.agent(session);
  const made = client(session, service.token(session), { lastEventId: "0-0" });
  const events: ReceivedEvent[] = [];
  const reading = (async () => {
    for await (const event of made) {
      events.push(event);
      if (numbers([event])[0] === 1) break;
    }
  })();
  await agent(`/publish/${session}`, status(0));
  await agent(`/publish/${session}`, status(1));
  await reading;
  expect(numbers(events)).toEqual([0, 1]);
  const iterator = made[Symbol.asyncIterator]();
  const drained = (async () => {
    while (!(await iterator.next()).done);
    return true;
  })();
  made.disconnect();
  expect(await drained).toBe(true);
});

test("several iterators each get everything, and one that is returned ends at once", async () => {
  const session = newSession();
  const made = client(session, service.token(session));
  const one = made[Symbol.asyncIterator]();
  const two = made[Symbol.asyncIterator]();
  const [first, same] = await Promise.all([one.next(), two.next()]);
  expect(first.value).toBe(same.value);
  await one.return?.();
  expect(await one.next()).toEqual({ value: undefined, done: true });
  expect((await two.next()).done).toBe(false);
});

test("the iterator throws what ends the connection", async () => {
  const made = client(newSession(), "bad");
  await expect(made[Symbol.asyncIterator]().next()).rejects.toMatchObject({ code: "unauthorized" });
  await expect(made[Symbol.asyncIterator]().next()).rejects.toMatchObject({ code: "unauthorized" });
});

test("a closed session ends it", async () => {
  const session = newSession();
  const made = await opened(session);
  const end = ending(made);
  const messages: string[] = [];
  made.onError = (message) => messages.push(message);
  const agent = service.agent(session);
  expect((await agent(`/sessions/${session}`, undefined, "DELETE")).status).toBe(200);
  const error = await end;
  expect(error).toMatchObject({ code: "session_closed" });
  expect(messages).toEqual([error.message]);
});

test("a listener's subscription ends with what on() returned, and the same function may listen twice", async () => {
  const session = newSession();
  const made = await opened(session);
  let count = 0;
  const listener = () => {
    count++;
  };
  const offs = [made.on("heartbeat", listener), made.on("heartbeat", listener)];
  await next(made, "event", (event) => event.type === "heartbeat");
  expect(count).toBe(2);
  offs[0]?.();
  await next(made, "event", (event) => event.type === "heartbeat");
  expect(count).toBe(3);
});
