// Where streams are held back the client polls, and goes back to the stream by itself; nothing lost, nothing doubled.

import { afterAll, beforeAll, expect, test } from "vitest";
import { makeHttp } from "../src/http.js";
import { makeInbox } from "../src/inbox.js";
import { type ClientOptions, SSEClient } from "../src/index.js";
import type { Link } from "../src/link.js";
import { takePage } from "../src/poll.js";
import { kept, next, numbered, numbers, status } from "./events.js";
import { HoldingProxy } from "./proxy.js";
import { PREFIX, Service } from "./service.js";

let service: Service;
beforeAll(async () => {
  service = await new Service().start();
});
afterAll(() => service.close());

async function behindProxy(
  session: string,
  work: (client: SSEClient, proxy: HoldingProxy) => Promise<void>,
  options: ClientOptions = {},
) {
  const proxy = new HoldingProxy(service.port);
  const baseUrl = `http://127.0.0.1:${await proxy.listen()}${PREFIX}`;
  const client = new SSEClient(session, service.token(session), {
    baseUrl,
    streamTimeout: 300,
    streamRetry: 300,
    reconnectDelay: 50,
    ...options,
  });
  try {
    await work(client, proxy);
  } finally {
    client.disconnect();
    await proxy.close();
  }
}

const via = (client: SSEClient, wanted: string) =>
  next(client, "state", (state) => state.phase === "open" && state.via === wanted);

test("a stream that is held back is replaced by polls, and takes over when it gets through", async () => {
  const agent = service.agent("p1");
  await agent("/publish/p1", status(0));
  await behindProxy("p1", async (client, proxy) => {
    const events = kept(client);
    let openings = 0;
    client.onConnectionOpen = () => {
      openings++;
    };
    const polled = via(client, "poll");
    client.connect();
    await polled;
    const tenth = numbered(client, 10);
    for (let n = 1; n <= 10; n++) await agent("/publish/p1", status(n));
    await tenth;
    const streamed = via(client, "stream");
    proxy.buffering = false;
    let n = 10;
    const publishing = (async () => {
      while (client.state.via === "poll") await agent("/publish/p1", status(++n));
    })();
    await streamed;
    await publishing;
    const last = numbered(client, n + 1);
    await agent("/publish/p1", status(n + 1));
    await last;
    expect(numbers(events)).toEqual(Array.from({ length: n + 1 }, (_, index) => index + 1));
    expect(openings).toBe(1);
    const asked = proxy.asked.length;
    await next(client, "event", (event) => event.type === "heartbeat");
    await next(client, "event", (event) => event.type === "heartbeat");
    expect(proxy.asked.slice(asked)).toEqual([]); // it polls no more
  });
});

test("a poll's events are those of the stream, to the letter", async () => {
  const agent = service.agent("p2");
  await agent("/publish/p2", status(0));
  await agent("/publish/p2", { type: "error", message: "away", code: "model_unavailable" });
  const direct = new SSEClient("p2", service.token("p2"), { baseUrl: service.base, lastEventId: "0-0" });
  const streamed = kept(direct);
  direct.connect();
  await next(direct, "event", (event) => event.type === "error");
  direct.disconnect();
  await behindProxy(
    "p2",
    async (client) => {
      const polled = kept(client);
      const last = next(client, "event", (event) => event.type === "error");
      client.connect();
      await last;
      expect(polled).toEqual(streamed.filter((event) => event.id));
    },
    { lastEventId: "0-0" },
  );
});

test("a lost cursor is told by a stream_reset in a poll too", async () => {
  await behindProxy(
    "p3",
    async (client) => {
      const reset = next(client, "event", (event) => event.type === "stream_reset");
      client.connect();
      await reset;
    },
    { lastEventId: "7-7" },
  );
});

test("polling goes on after the service's restart, without loss or doubles", async () => {
  const agent = service.agent("p4");
  await behindProxy("p4", async (client) => {
    const events = kept(client);
    const polled = via(client, "poll");
    client.connect();
    await polled;
    const first = numbered(client, 1);
    await agent("/publish/p4", status(1));
    await first;
    await service.restart();
    const second = numbered(client, 2);
    await agent("/publish/p4", status(2));
    await second;
    expect(numbers(events)).toEqual([1, 2]);
    expect(client.state.via).toBe("poll");
  });
});

test("a stream that falls silent is given up after two heartbeats, and resumed without loss", async () => {
  const agent = service.agent("p5");
  await behindProxy("p5", async (client, proxy) => {
    proxy.buffering = false;
    const events = kept(client);
    const opened = next(client, "event", (event) => event.type === "permission_cleared");
    client.connect();
    await opened;
    const first = numbered(client, 1);
    await agent("/publish/p5", status(1));
    await first;
    proxy.stall();
    const waiting = next(client, "state", (state) => state.phase === "waiting");
    const second = numbered(client, 2);
    await agent("/publish/p5", status(2));
    expect((await waiting).error).toMatchObject({ code: "network" });
    await second;
    expect(numbers(events)).toEqual([1, 2]);
    expect(client.state.via).toBe("stream");
  });
});

test("a page says whether it brought anything new: one that comes again did not", async () => {
  const data = { events: [{ id: "1-0", type: "tool_result", data: {} }], last_event_id: "1-0", reset: null };
  const http = { ...makeHttp("", "t"), call: async () => Response.json({ success: true, data }) };
  const link = { http, session: "s", inbox: makeInbox(null, () => {}) } as unknown as Link;
  const { signal } = new AbortController();
  expect(await takePage(link, 0, signal)).toBe(true);
  expect(await takePage(link, 0, signal)).toBe(false);
});
