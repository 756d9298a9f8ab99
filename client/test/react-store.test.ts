import { once } from "node:events";
import { createServer, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { AlreadySending, type SessionStore, sessionStore, subjectOf } from "../src/react/store.js";

const REQUEST = {
  type: "permission_request",
  data: { request_id: "pr_1", tool_call_id: "c1", tool_name: "edit", parameters: {}, risk_level: "high" },
};

/** A service of one session: one stream after another, and one answer to what is posted. */
class Service {
  readonly server: Server;
  readonly tokens: string[] = [];
  streams: ServerResponse[] = [];
  answer: { status: number; body: object } = { status: 200, body: { success: true, data: { approved: true } } };
  readonly refused = new Set<string>();
  hold: Promise<void> = Promise.resolve();

  constructor() {
    this.server = createServer(async (request, response) => {
      const bearer = request.headers.authorization?.replace("Bearer ", "") ?? "";
      this.tokens.push(bearer);
      if (this.refused.has(bearer)) {
        response.writeHead(401).end(JSON.stringify({ success: false, message: "expired" }));
      } else if (request.method === "GET") {
        response.writeHead(200, { "Content-Type": "text/event-stream" });
        response.write(`data: {"type":"heartbeat","timestamp":1}\n\nid: 1-0\ndata: ${JSON.stringify(REQUEST)}\n\n`);
        this.streams.push(response);
        this.server.emit("stream", response);
      } else {
        await this.hold;
        response.writeHead(this.answer.status, { "Content-Type": "application/json" });
        response.end(JSON.stringify(this.answer.body));
      }
    });
  }

  get address(): string {
    return `http://127.0.0.1:${(this.server.address() as AddressInfo).port}`;
  }
}

let service: Service;
const stops: (() => void)[] = [];

beforeEach(async () => {
  service = new Service();
  service.server.listen(0, "127.0.0.1");
  await once(service.server, "listening");
});

afterEach(async () => {
  for (const stop of stops.splice(0)) stop();
  service.server.closeAllConnections();
  service.server.close();
  await once(service.server, "close");
});

function token(sub: string, more = ""): string {
  return `h.${Buffer.from(JSON.stringify({ sub, more })).toString("base64url")}.s`;
}

function store(bearer = token("alice")): SessionStore {
  return sessionStore("s1", bearer, { baseUrl: service.address, shareTabs: false, maxReconnectAttempts: 1 });
}

function follow(one: SessionStore, listener = () => {}): () => void {
  const stop = one.subscribe(listener);
  stops.push(stop);
  return stop;
}

/** Wait until the store's state is such. */
function until(one: SessionStore, holds: () => boolean): Promise<void> {
  return new Promise((resolve) => {
    const look = () => {
      if (holds()) resolve();
    };
    follow(one, look);
    look();
  });
}

const shown = (one: SessionStore) => one.snapshot().session.requests.map((request) => request.id);

describe("a session's store", () => {
  test("is one for all who show the session, with one connection, also for a renewed token", async () => {
    const one = store();
    const other = store(token("alice", "renewed"));
    follow(one);
    await until(other, () => shown(other).length === 1);
    expect([one === other, service.streams.length]).toEqual([true, 1]);
  });

  test("is another one for another subject, and for a token that names none", () => {
    expect(new Set([store(), store(token("bob")), store("opaque"), store("opaque too")]).size).toBe(4);
  });

  test("keeps its connection when who showed it is put back at once, and drops it after the last one", async () => {
    const one = store();
    follow(one)();
    follow(one);
    await until(one, () => shown(one).length === 1);
    const [stream] = service.streams;
    for (const stop of stops.splice(0)) stop();
    await once(stream as ServerResponse, "close");
    expect([service.streams.length, one.snapshot().connection.phase, store() === one]).toEqual([1, "idle", false]);
  });

  test("tells of many events at once", async () => {
    const one = store();
    await until(one, () => shown(one).length === 1);
    let renders = 0;
    follow(one, () => {
      renders += 1;
    });
    const lines = Array.from({ length: 1000 }, (_, at) => {
      const data = { status: "executing", tool_name: "t", tool_call_id: "c", timestamp: "", details: {} };
      return `id: 2-${at}\ndata: ${JSON.stringify({ type: "tool_status", data })}\n\n`;
    });
    service.streams[0]?.write(lines.join(""));
    await until(one, () => one.snapshot().session.count === 1001);
    expect(renders).toBeLessThan(100);
  });

  test("begins anew with a renewed token after it ended for want of one, with what it showed", async () => {
    const one = store();
    await until(one, () => shown(one).length === 1);
    service.refused.add(token("alice"));
    service.streams[0]?.end();
    await until(one, () => one.snapshot().connection.phase === "ended");
    const renewed = token("alice", "renewed");
    one.renew(renewed, undefined);
    await until(one, () => one.snapshot().connection.phase === "open");
    expect([service.tokens.at(-1), shown(one)]).toEqual([renewed, ["pr_1"]]);
  });

  test("asks the provider of one component also when another one gives none", async () => {
    const one = store();
    await until(one, () => shown(one).length === 1);
    const renewed = token("alice", "renewed");
    one.renew(token("alice"), async () => renewed);
    one.renew(token("alice"), undefined);
    service.refused.add(token("alice"));
    const [next] = [once(service.server, "stream"), service.streams[0]?.end()];
    await next;
    expect(service.tokens.at(-1)).toBe(renewed);
  });
});

describe("an answer", () => {
  test("takes the card away, and is sent once", async () => {
    const one = store();
    await until(one, () => shown(one).length === 1);
    let release = () => {};
    service.hold = new Promise((resolve) => {
      release = resolve;
    });
    const first = one.answer("pr_1", { approved: true });
    const pending = [...one.snapshot().pending];
    await expect(one.answer("pr_1", { approved: false })).rejects.toThrow(AlreadySending);
    release();
    await first;
    expect([pending, [...one.snapshot().pending], shown(one)]).toEqual([["pr_1"], [], []]);
  });

  test.each([404, 409, 410])("that the service answers with %i takes the card away and says why", async (status) => {
    const one = store();
    await until(one, () => shown(one).length === 1);
    const body = { success: false, message: "too late", error: { code: "gone" }, data: { resolved_by: "bob" } };
    service.answer = { status, body };
    await expect(one.answer("pr_1", { approved: true })).rejects.toThrow("too late");
    expect([shown(one), one.snapshot().session.outcomes]).toMatchObject([
      [],
      [{ requestId: "pr_1", outcome: "refused", reason: "too late", resolvedBy: "bob" }],
    ]);
  });

  test("that the service finds wrong leaves the card", async () => {
    const one = store();
    await until(one, () => shown(one).length === 1);
    service.answer = { status: 422, body: { success: false, message: "no", error: { code: "invalid_parameters" } } };
    await expect(one.answer("pr_1", { approved: true })).rejects.toMatchObject({ code: "invalid_parameters" });
    expect(shown(one)).toEqual(["pr_1"]);
  });
});

test.each([
  [token("爱丽丝"), "sub:爱丽丝"],
  ["opaque", "token:opaque"],
  ["a.!!.c", "token:a.!!.c"],
  [`a.${Buffer.from("{").toString("base64url")}.c`, `token:a.${Buffer.from("{").toString("base64url")}.c`],
])("the subject of %s is %s", (given, expected) => {
  expect(subjectOf(given)).toBe(expected);
});
