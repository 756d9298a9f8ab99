// What of the console needs no browser: the log's bounds, filter and search, export, times, curl commands, the fragment.

import { execFileSync } from "node:child_process";
import { describe, expect, test } from "vitest";
import { spanOf } from "../console/calls.js";
import { asciiJson, commandsOf, curl, shellWord } from "../console/curl.js";
import { indexOf, target } from "../console/events.js";
import { EVERYTHING, Rows } from "../console/filter.js";
import { fragmentOf, readFragment } from "../console/fragment.js";
import { type Entry, EventLog, ndjson } from "../console/log.js";
import { summarize } from "../console/summary.js";
import { TEXTS } from "../console/texts.js";
import { barOf, duration, timeOfId } from "../console/time.js";
import type { EventType } from "../src/events.js";
import type { ReceivedEvent } from "../src/types.js";
import type { ToolCall } from "../src/view.js";

const NASTY = ["a'b", "$(touch x)", "`id`", 'a"b\\c', "; rm -rf ~", "\u202e\u0000\n\t", "é漢😀", "!!", "-n", ""];

function event(type: EventType, data: object, id: string | null = null): ReceivedEvent {
  return { id, type, data, raw: JSON.stringify({ type, data }) } as unknown as ReceivedEvent;
}

function status(tool: string, value: string, extra: object = {}): ReceivedEvent {
  return event("tool_status", { tool_name: tool, status: value, tool_call_id: tool, details: {}, ...extra }, "5-1");
}

function filled(count: number, log = new EventLog()): EventLog {
  for (let at = 0; at < count; at += 1)
    log.append(status(`t${at % 3}`, at % 2 ? "executing" : "completed", { at }), at);
  return log;
}

const seqs = (entries: readonly Entry[]) => entries.map(({ seq }) => seq);

describe("the log", () => {
  test("keeps the newest events up to its bound, and counts what it dropped", () => {
    const log = filled(25, new EventLog(10));
    expect(seqs(log.entries)).toEqual([15, 16, 17, 18, 19, 20, 21, 22, 23, 24]);
    expect([log.first, log.next, log.dropped]).toEqual([15, 25, 15]);
  });

  test("keeps no more bytes than its bound, but always the newest event", () => {
    const log = new EventLog(100, 1000);
    for (let at = 0; at < 50; at += 1) log.append(status("t", "executing", { text: "x".repeat(100) }), at);
    expect(log.bytes).toBeLessThanOrEqual(1000);
    log.append(status("t", "executing", { text: "x".repeat(5000) }), 50);
    expect(seqs(log.entries)).toEqual([50]);
  });

  test("keeps an event's text only, and exports it digit by digit", () => {
    const raw = '{"type":"tool_result","data":{"tool_name":"t","success":true,"result":12345678901234567890}}';
    const log = new EventLog();
    log.append({ id: "7-0", type: "tool_result", data: JSON.parse(raw).data, raw }, 0);
    expect(Object.values(log.entries[0] ?? {}).some((value) => typeof value === "object" && value !== null)).toBe(
      false,
    );
    expect(ndjson(log.entries)).toEqual([`{"id":"7-0","received_at":"1970-01-01T00:00:00.000Z","event":${raw}}\n`]);
  });

  test("exports one line for each event, also where its JSON came in several", () => {
    const log = new EventLog();
    log.append({ ...status("t", "executing"), raw: '{\n"type":"tool_status",\r\n"data":{}}' }, 0);
    const [line = ""] = ndjson(log.entries);
    expect(line.trimEnd()).not.toMatch(/[\r\n]/);
    expect(JSON.parse(line).event).toEqual({ type: "tool_status", data: {} });
  });
});

describe("the filter", () => {
  test("shows what comes, in order, and drops what the log drops", () => {
    const log = filled(8, new EventLog(10));
    const rows = new Rows(log);
    rows.advance();
    filled(5, log);
    expect(rows.advance()).toEqual({ done: true, dropped: 3 });
    expect(seqs(rows.shown)).toEqual(seqs(log.entries));
  });

  test("takes type, tool, status and text together", () => {
    const log = filled(12);
    log.append(event("tool_result", { tool_name: "t0", success: true, result: "Straße" }, "9-9"), 0);
    const rows = new Rows(log);
    const found = (filter: object) => {
      rows.setFilter({ ...EVERYTHING, ...filter });
      rows.advance();
      return seqs(rows.shown);
    };
    expect(found({ tool: "t0", status: "executing" })).toEqual([3, 9]);
    expect(found({ type: "tool_result" })).toEqual([12]);
    expect(found({ text: "STRASSE" })).toEqual([]);
    expect(found({ text: "sTRAßE" })).toEqual([12]);
    expect(found({ text: "9-9" })).toEqual([12]);
    expect(found({ text: '"at":7' })).toEqual([7]);
    expect(found({ text: "9-9", tool: "t1" })).toEqual([]);
  });

  test("looks through a large log in slices, and comes to the same", () => {
    const log = new EventLog();
    for (let at = 0; at < 3000; at += 1) log.append(status(`t${at % 7}`, "executing", { pad: "x".repeat(500) }), at);
    const rows = new Rows(log);
    rows.setFilter({ ...EVERYTHING, text: '"tool_name":"t3"' });
    let clock = 0;
    let slices = 1;
    while (!rows.advance(8, () => (clock += 5)).done) slices += 1;
    expect(slices).toBeGreaterThan(5);
    expect(seqs(rows.shown)).toEqual(seqs(log.entries).filter((seq) => seq % 7 === 3));
  });

  test("a pause keeps what is shown, and loses nothing", () => {
    const log = filled(4, new EventLog(6));
    const rows = new Rows(log);
    rows.advance();
    rows.pause();
    filled(4, log);
    rows.advance();
    expect([seqs(rows.shown), rows.held]).toEqual([[0, 1, 2, 3], 4]);
    rows.setFilter({ ...EVERYTHING, status: "executing" });
    rows.advance();
    expect([seqs(rows.shown), rows.paused]).toEqual([[3], true]);
    rows.setFilter(EVERYTHING);
    rows.resume();
    rows.advance();
    expect(seqs(rows.shown)).toEqual([2, 3, 4, 5, 6, 7]);
  });
});

describe("the list", () => {
  test("finds a row by its number, and none that was dropped", () => {
    const { entries } = filled(25, new EventLog(10));
    expect([15, 19, 24, 3, 99].map((seq) => indexOf(entries, seq))).toEqual([0, 4, 9, -1, -1]);
  });

  test("keys lead no further than its ends", () => {
    expect(target("ArrowDown", -1, 5)).toBe(0);
    expect(target("ArrowUp", -1, 5)).toBe(4);
    expect(target("PageDown", 3, 5)).toBe(4);
    expect(target("PageUp", 3, 5)).toBe(0);
    expect([target("a", 0, 5), target("End", 0, 0)]).toEqual([null, null]);
  });

  test("sums an event up in one line without invisible characters", () => {
    const raw = JSON.stringify({
      type: "tool_status",
      data: { tool_name: "a\u202eb\nc", status: "executing", details: { progress: { progress: 1, total: 3 } } },
    });
    expect(summarize("tool_status", raw)).toBe("a\\u{202e}b c · executing · 1 / 3");
    expect(summarize("later_type", '{"type":"later_type","data":{"a":12345678901234567890}}')).toMatch(
      /^\{"a":123456789/,
    );
    expect(summarize("tool_status", "no json")).toBe("no json");
  });
});

describe("times", () => {
  test("durations read as people say them", () => {
    expect([340, 12_449, 60_000, 3_599_000, 7_440_000].map(duration)).toEqual([
      "340 ms",
      "12.4 s",
      "1 min 00 s",
      "59 min 59 s",
      "2 h 04 min",
    ]);
  });

  test("an event's id tells when it was given", () => {
    expect([timeOfId("1700000000000-3"), timeOfId(null), timeOfId("x")]).toEqual([1.7e12, Number.NaN, Number.NaN]);
  });

  test("a bar lies within its window, and nowhere when it is outside", () => {
    const window = { from: 100, to: 200 };
    expect(barOf(150, 175, window)).toEqual({ left: 50, width: 25 });
    expect(barOf(0, 400, window)).toEqual({ left: 0, width: 100 });
    expect([barOf(0, 99, window), barOf(201, 300, window), barOf(Number.NaN, 150, window)]).toEqual([null, null, null]);
  });

  test("the window spans the calls of the last minutes, and five minutes while an older one runs", () => {
    const call = (startedAt: number, endedAt: number | null, value = "completed") =>
      ({ startedAt, endedAt, status: value, result: null }) as ToolCall;
    expect(spanOf([call(1_000_000, 1_000_500), call(1_001_000, 1_002_000)], null)).toEqual({
      from: 1e6,
      to: 1_002_000,
    });
    expect(spanOf([call(0, 500), call(990_000, 1e6)], null)).toEqual({ from: 990_000, to: 1e6 });
    expect(spanOf([call(0, null, "executing")], 1e6)).toEqual({ from: 700_000, to: 1e6 });
  });
});

describe("curl commands", () => {
  test("a shell reads a quoted word as exactly the text", () => {
    for (const text of NASTY.filter((one) => !one.includes("\u0000"))) {
      expect(execFileSync("/bin/sh", ["-c", `printf %s ${shellWord(text)}`]).toString()).toBe(text);
    }
  });

  test("JSON is ASCII, and the same value", () => {
    for (const text of NASTY) {
      expect(asciiJson({ text })).toMatch(/^[\x20-\x7e]*$/);
      expect(JSON.parse(asciiJson({ text }))).toEqual({ text });
    }
  });

  test("a shell hands curl the request, with the token of its own variable", () => {
    const url = "http://[::1]:8000/p/permission-response/s1";
    for (const id of NASTY) {
      const command = curl({ url, method: "POST", body: { approved: true, request_id: id } });
      const script = `curl() { printf '%s\\n' "$@"; }; TOKEN=the-token; ${command}`;
      const words = execFileSync("/bin/sh", ["-c", script]).toString().trimEnd().split("\n");
      expect(words.slice(0, -2)).toEqual([
        "-g", "-X", "POST", "-H", "Authorization: Bearer the-token", "-H", "Content-Type: application/json", "--data-raw",
      ]); // biome-ignore format: a command line
      expect(JSON.parse(words.at(-2) ?? "")).toEqual({ approved: true, request_id: id });
      expect(words.at(-1)).toBe(url);
    }
  });

  test("every command names the session and no token", () => {
    const commands = commandsOf("http://127.0.0.1:8000/p", "s:1");
    expect(commands.stream).toBe('curl -g -N -H "Authorization: Bearer $TOKEN" http://127.0.0.1:8000/p/events/s%3A1');
    expect(commands.health).toMatch(/\/health\/s%3A1$/);
    expect(commands.answer("pr_1", false)).toContain('{"approved":false,"request_id":"pr_1"}');
    expect(commands.cancel("c1")).toContain('{"tool_call_id":"c1"}');
  });
});

describe("the fragment", () => {
  test("carries session and token in, and only the session out", () => {
    expect(readFragment("#session=s1&token=a.b.c")).toEqual({ session: "s1", token: "a.b.c" });
    expect(readFragment("")).toEqual({ session: "", token: "" });
    expect([fragmentOf("s:1"), fragmentOf("")]).toEqual(["#session=s%3A1", ""]);
  });
});

test("both languages say the same things, in their own words", () => {
  expect(Object.keys(TEXTS.zh)).toEqual(Object.keys(TEXTS.en));
  const same = Object.keys(TEXTS.en).filter((key) => Reflect.get(TEXTS.en, key) === Reflect.get(TEXTS.zh, key));
  expect(same).toEqual(["id", "redis"]);
});
