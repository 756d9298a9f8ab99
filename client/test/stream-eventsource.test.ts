// The browser's EventSource, played: which ids of its messages are an event's own.

import { afterEach, expect, test, vi } from "vitest";
import { readEventSource } from "../src/eventsource.js";
import type { Link } from "../src/link.js";

afterEach(() => vi.unstubAllGlobals());

/** Read messages, each with the last id that an EventSource remembers; return the frames that come of them. */
async function framesOf(...messages: [lastEventId: string, data: string][]) {
  let source: { onmessage?: (message: { data: string; lastEventId: string }) => void } = {};
  class Played {
    constructor() {
      source = this as typeof source;
    }
    close() {}
  }
  vi.stubGlobal("EventSource", Played);
  const frames: unknown[] = [];
  const ended = new AbortController();
  const link = { http: { base: "", data: async () => ({ token: "ticket" }) }, session: "s" } as unknown as Link;
  const take = (id: unknown, data: unknown) => frames.push([id, data]);
  const reading = readEventSource(
    link,
    "5-0",
    ended.signal,
    () => {},
    take,
    () => {},
  ).catch(() => {});
  await vi.waitFor(() => expect(source.onmessage).toBeDefined());
  for (const [lastEventId, data] of messages) source.onmessage?.({ data, lastEventId });
  ended.abort();
  await reading;
  return frames;
}

test.each(["session_closed", "token_expired", "unavailable"])("the stream's last word %s has no id", async (code) => {
  const word = JSON.stringify({ type: "error", code, message: "m" });
  expect(await framesOf(["7-0", word])).toEqual([[null, word]]);
});

test("an agent's error has the id of its own, and what repeats the last one has none", async () => {
  const error = JSON.stringify({ type: "error", code: "model_unavailable", message: "m" });
  const frames = await framesOf(["7-0", error], ["7-0", "{}"], ["8-0", "no JSON"]);
  expect(frames).toEqual([
    ["7-0", error],
    [null, "{}"],
    ["8-0", "no JSON"],
  ]);
});
