import "./exact-json.js";
import { createElement } from "react";
import { renderToString } from "react-dom/server";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { arranged } from "../src/react/arranged.js";
import { type DiffLine, diffLines } from "../src/react/diff.js";
import { languageOf, messages } from "../src/react/messages.js";
import { MCPToolMonitor } from "../src/react/monitor.js";
import { isChanged, readEdit, same } from "../src/react/patch.js";
import { parseExact } from "../src/text.js";
import type { ToolCall } from "../src/view.js";

/** RFC 7396, section 2, as it stands there. */
function mergePatch(target: unknown, patch: unknown): unknown {
  if (typeof patch !== "object" || patch === null || Array.isArray(patch)) return patch;
  const whole = typeof target === "object" && target !== null && !Array.isArray(target) ? target : {};
  const merged = new Map<string, unknown>(Object.entries(whole));
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) merged.delete(key);
    else merged.set(key, mergePatch(merged.get(key), value));
  }
  return Object.fromEntries(merged);
}

describe("the merge patch of an edit", () => {
  test.each<[string, object, object, object]>([
    ["nothing", { a: 1, b: { c: [1] } }, { b: { c: [1] }, a: 1 }, {}],
    ["a value", { a: 1, b: 2 }, { a: 1, b: 3 }, { b: 3 }],
    ["a key less", { a: 1, b: 2 }, { a: 1 }, { b: null }],
    ["a key more", { a: 1 }, { a: 1, b: "x" }, { b: "x" }],
    ["something deep", { a: { b: { c: 1, d: 2 } } }, { a: { b: { c: 1, d: 3 } } }, { a: { b: { d: 3 } } }],
    ["an array, whole", { a: [1, 2, { n: null }] }, { a: [1, { n: null }] }, { a: [1, { n: null }] }],
    ["an object for a value", { a: 1 }, { a: { b: 2 } }, { a: { b: 2 } }],
    ["an object for an array", { a: [1] }, { a: { b: 2 } }, { a: { b: 2 } }],
    ["an empty object for a value", { a: 1 }, { a: {} }, { a: {} }],
    ["all keys of an object", { a: { b: 1, c: 2 } }, { a: {} }, { a: { b: null, c: null } }],
    ["beside a null that stays", { a: null, b: 1 }, { a: null, b: 2 }, { b: 2 }],
    ["a null that goes", { a: null }, {}, { a: null }],
    ["a new empty object", {}, { a: {} }, { a: {} }],
  ])("for %s", (_what, base, edited, expected) => {
    const edit = readEdit(base, JSON.stringify(edited));
    expect(edit).toEqual({ ok: true, value: edited, patch: expected });
    expect(mergePatch(base, expected)).toEqual(edited);
  });

  test.each([
    [{ a: 1 }, { a: null }, "/a"],
    [{}, { a: null }, "/a"],
    [{ a: 1 }, { a: { "b/~": null } }, "/a/b~1~0"],
    [{ a: [1] }, { a: { b: { c: null } } }, "/a/b/c"],
  ])("of %j cannot say %j: null means remove", (base, edited, pointer) => {
    expect(readEdit(base, JSON.stringify(edited))).toEqual({ ok: false, problem: { kind: "null", pointer } });
  });

  test.each([
    ["{", "syntax"],
    ["", "syntax"],
    ["[1]", "not_object"],
    ["null", "not_object"],
    ["9007199254740993", "not_object"],
    [`{"a":${"[".repeat(300)}${"]".repeat(300)}}`, "too_deep"],
    [`{"a":${"[".repeat(200_000)}1${"]".repeat(200_000)},"b":9007199254740993}`, "too_deep"],
  ])("is refused for case %#", (text, kind) => {
    expect(readEdit({ a: 1 }, text)).toMatchObject({ ok: false, problem: { kind } });
  });

  test("keeps the digits of large numbers, and sees a change in the last one", () => {
    const base = parseExact('{"id":9007199254740993,"n":1}');
    const edits = ['{"id":9007199254740993,"n":2}', '{"id":9007199254740992,"n":1}'].map((text) =>
      readEdit(base, text),
    );
    expect(edits.map((edit) => edit.ok && JSON.stringify(edit.patch))).toEqual(['{"n":2}', '{"id":9007199254740992}']);
  });

  test.each([
    ['{"n":123456789012345678.25}', "123456789012345678.25"],
    ['{"n":[1,1e400]}', "1e400"],
  ])("is refused for %s, which the service would round", (text, number) => {
    expect(readEdit({ n: 1 }, text)).toEqual({ ok: false, problem: { kind: "inexact", number } });
  });

  test("leaves a number alone that is not changed, whatever it is", () => {
    const base = parseExact('{"n":123456789012345678.25,"a":1}');
    const edit = readEdit(base, '{"a":2,"n":123456789012345678.25}');
    expect(edit.ok && edit.patch).toEqual({ a: 2 });
  });

  test("another order of keys is no change", () => {
    const edits = ['{"b":2,"a":1}', '{"b":2}', "{"].map((text) => readEdit({ a: 1, b: 2 }, text));
    expect(edits.map(isChanged)).toEqual([false, true, false]);
  });

  test("takes __proto__ for a key like any other", () => {
    const edit = readEdit({}, '{"__proto__":{"x":1}}');
    expect(edit.ok && JSON.stringify(edit.patch)).toBe('{"__proto__":{"x":1}}');
  });

  test("same() asks neither for the order of keys nor forgives another type", () => {
    expect([same({ a: 1, b: [2] }, { b: [2], a: 1 }), same([1], { 0: 1 }), same("1", 1), same({}, [])]).toEqual([
      true,
      false,
      false,
      false,
    ]);
  });
});

describe("the diff of lines", () => {
  const shown = (lines: DiffLine[]) =>
    lines.map((line) => (line.kind === "skipped" ? `@${line.count}` : `${line.kind[0]}${line.text}`));

  test.each([
    ["a\nb\nc", "a\nx\nc", ["sa", "rb", "ax", "sc"]],
    ["a\nb", "a\nb", ["@2"]],
    ["a", "a\nb", ["sa", "ab"]],
    ["a\nb\na\nb", "b\na", ["ra", "sb", "sa", "rb"]],
    ["0\n1\n2\n3\n4", "0\n1\n2\n3\n5", ["s0", "s1", "s2", "s3", "r4", "a5"]],
    ["1\n2\n3\n4\n5\n6", "1\n2\n3\n4\n5\n7", ["@2", "s3", "s4", "s5", "r6", "a7"]],
  ])("of %j and %j", (before, now, expected) => {
    expect(shown(diffLines(before, now))).toEqual(expected);
  });

  test("tells old and new apart without comparing where that would cost too much", () => {
    const many = (mark: string) => Array.from({ length: 2000 }, (_, at) => mark + at).join("\n");
    const lines = diffLines(many("a"), many("b"));
    expect([lines.length, lines[0]?.kind, lines[3999]?.kind]).toEqual([4000, "removed", "added"]);
  });
});

describe("the order of calls", () => {
  const calls = (...pairs: [string, string | null][]) =>
    new Map(pairs.map(([id, parentId]) => [id, { id, parentId } as unknown as ToolCall]));
  const order = (rows: ReturnType<typeof arranged>) => rows.map((row) => `${row.depth}${row.call.id}`);

  test.each<[string, [string, string | null][], string[]]>([
    [
      "newest first, parts below their call",
      [
        ["a", null],
        ["b", "a"],
        ["c", null],
        ["d", "b"],
      ],
      ["0c", "0a", "1b", "2d"],
    ],
    [
      "a parent that is not known",
      [
        ["a", "gone"],
        ["b", null],
      ],
      ["0b", "0a"],
    ],
    [
      "calls that are part of each other",
      [
        ["a", "b"],
        ["b", "a"],
        ["c", "c"],
      ],
      ["0a", "1b", "0c"],
    ],
  ])("%s", (_what, pairs, expected) => {
    expect(order(arranged(calls(...pairs)))).toEqual(expected);
  });
});

describe("the texts", () => {
  test("each language has a word for each state, risk and outcome that the other has", () => {
    for (const kind of ["status", "risk", "outcome"] as const) {
      expect(Object.keys(messages.zh[kind])).toEqual(Object.keys(messages.en[kind]));
    }
  });

  test.each([
    ["zh-CN", "zh"],
    ["zh", "zh"],
    ["ZH-tw", "zh"],
    ["en-GB", "en"],
    ["de", "en"],
    [undefined, "en"],
  ])("a browser's %s is %s", (tag, expected) => {
    expect(languageOf(tag)).toBe(expected);
  });
});

describe("on a server", () => {
  test("the component is rendered without a session, in the language it is told, and asks nobody", () => {
    const html = renderToString(createElement(MCPToolMonitor, { sessionId: "s1", token: "t", language: "zh" }));
    expect([html.includes(messages.zh.disconnected), html.includes(messages.zh.noRequests)]).toEqual([true, true]);
  });
});

describe("in an engine without JSON.rawJSON", () => {
  const whole = globalThis.JSON;
  beforeAll(() => {
    globalThis.JSON = { parse: whole.parse, stringify: whole.stringify } as JSON;
  });
  afterAll(() => {
    globalThis.JSON = whole;
  });

  test("no edit has a number that was rounded", async () => {
    vi.resetModules();
    const { readEdit: edit } = await import("../src/react/patch.js");
    const problems = ['{"a":9007199254740993}', '{"a":0.12345678901234567891}', '{"a":1.5,"b":9007199254740991}'].map(
      (text) => edit({ a: 1 }, text),
    );
    expect(problems).toEqual([
      { ok: false, problem: { kind: "inexact", number: "9007199254740993" } },
      { ok: false, problem: { kind: "inexact", number: "0.12345678901234567891" } },
      { ok: true, value: { a: 1.5, b: 9007199254740991 }, patch: { a: 1.5, b: 9007199254740991 } },
    ]);
  });
});
