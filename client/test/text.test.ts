import "./exact-json.js";
import { describe, expect, test } from "vitest";
import {
  cut,
  editable,
  exactData,
  inexactNumber,
  isRounded,
  numberOf,
  oneLine,
  parseExact,
  pretty,
  visible,
} from "../src/text.js";
import type { ReceivedEvent } from "../src/types.js";

describe("visible", () => {
  test.each([
    ["a\u202egnp.exe", "a\\u{202e}gnp.exe"],
    ["\u200b\ufeff\u00ad", "\\u{200b}\\u{feff}\\u{ad}"],
    ["\u0000\u001b[31m\r\t", "\\u{0}\\u{1b}[31m\\u{d}\\u{9}"],
    ["\u{e0041}\u3164\u2800", "\\u{e0041}\\u{3164}\\u{2800}"],
    ["\ud800", "\\u{d800}"],
    ["line\nline", "line\nline"],
    ["文件 é ❤️ 👍", "文件 é ❤️ 👍"],
  ])("shows %j as %j", (text, expected) => {
    expect(visible(text)).toBe(expected);
  });
});

describe("parseExact", () => {
  const TEXTS = [
    '{"id":9007199254740993}',
    '{"id":-123456789012345678901234567890}',
    '{"rate":0.12345678901234567890123}',
    '{"rate":12345678.1234567891234}',
    '{"huge":1e400,"tiny":1e-400}',
    '{"plain":1.5,"whole":42,"text":"9007199254740993","nested":[{"a":null}]}',
  ];

  test.each(TEXTS)("keeps every digit of %s", (text) => {
    expect(JSON.stringify(parseExact(text))).toBe(text);
  });

  test("leaves numbers that a double holds as numbers", () => {
    expect(parseExact('{"a":0.30000000000000004,"b":1e21,"pad":9007199254740991}')).toMatchObject({
      a: 0.30000000000000004,
      pad: 9007199254740991,
    });
  });

  test("throws where the text is not JSON", () => {
    expect(() => parseExact("{")).toThrow(SyntaxError);
  });
});

describe("pretty and editable", () => {
  const value = { "k\u202e": "a\u200bb\u{e0041}", list: [1, "x\ny"] };

  test("pretty shows what is invisible by number, in keys, too", () => {
    expect(pretty(value)).toBe('{\n  "k\\u{202e}": "a\\u{200b}b\\u{e0041}",\n  "list": [\n    1,\n    "x\\ny"\n  ]\n}');
  });

  test("editable parses back to the same value, with nothing invisible in it", () => {
    const text = editable(value);
    expect(JSON.parse(text)).toEqual(value);
    expect(visible(text)).toBe(text);
  });

  test("both keep the digits of a number that was kept as text", () => {
    const exact = parseExact('{"id":9007199254740993}');
    expect([pretty(exact), editable(exact)]).toEqual([
      '{\n  "id": 9007199254740993\n}',
      '{\n  "id": 9007199254740993\n}',
    ]);
  });

  test("pretty of undefined is empty", () => {
    expect(pretty(undefined)).toBe("");
  });
});

describe("oneLine and cut", () => {
  test("cut says how much is missing", () => {
    expect([cut("abcdef", 4), cut("abcd", 4)]).toEqual(["abcd… (+2)", "abcd"]);
  });

  test.each([
    ["a\n  b", "a b"],
    [{ a: "\u202e" }, '{"a":"\\u{202e}"}'],
    [null, ""],
    [undefined, ""],
    [false, "false"],
  ])("shows %j in one line as %j", (value, expected) => {
    expect(oneLine(value)).toBe(expected);
  });
});

test("numberOf takes finite numbers, and those kept as text", () => {
  const values = [1.5, parseExact("9007199254740993"), "1", null, Number.NaN, parseExact("1e400")];
  expect(values.map(numberOf)).toEqual([1.5, 9007199254740992, null, null, null, null]);
});

test.each([
  ["123456789012345678.25", "123456789012345678.25"],
  ['{"a":[1,{"b":1e400}]}', "1e400"],
  ["-0.1000000000000000055", "-0.1000000000000000055"],
  ["1e-400", "1e-400"],
  ["1.2345678e-320", "1.2345678e-320"],
  ['[0.1,0.10,1e21,1E+2,100.0,-2.50e-3,0.0,0e9,9007199254740993,5e-324,"1e400 \\" 1e400"]', undefined],
])("inexactNumber finds in %s %s", (json, expected) => {
  expect(inexactNumber(json)).toBe(expected);
});

test("isRounded finds a whole number that a double cannot hold, however deep", () => {
  expect([isRounded({ a: [{ b: 2 ** 53 }] }), isRounded({ a: [1, "9007199254740993"] })]).toEqual([true, false]);
});

test("exactData reads the digits out of an event's raw text", () => {
  const raw = '{"type":"tool_result","data":{"result":{"id":9007199254740993}}}';
  const event = { id: "1-0", ...JSON.parse(raw), raw } as ReceivedEvent;
  expect(JSON.stringify(exactData(event))).toBe('{"result":{"id":9007199254740993}}');
});
