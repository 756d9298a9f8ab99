// The parser of event streams: the same frames however the bytes are cut, and the rules of the specification.

import { expect, test } from "vitest";
import { makeParser } from "../src/stream.js";

type Frame = [string | null | undefined, string | undefined];

/** Parse bytes in pieces that end at `cuts`, as they arrive over a network. */
function parse(bytes: Uint8Array, cuts: number[] = []) {
  const frames: Frame[] = [];
  const retries: number[] = [];
  const take = makeParser(
    (id, data) => frames.push([id, data]),
    (ms) => retries.push(ms),
  );
  const decoder = new TextDecoder();
  let from = 0;
  for (const to of [...cuts, bytes.length]) {
    take(decoder.decode(bytes.subarray(from, to), { stream: true }));
    from = to;
  }
  return { frames, retries };
}

const text = (value: string, cuts?: number[]) => parse(new TextEncoder().encode(value), cuts);

/** A small generator with a seed, so that a failure can be repeated. */
function randomOf(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

test("fields, comments and blank lines are read as the specification says", () => {
  expect(text(": comment\nid: 1-0\ndata: a\n\n").frames).toEqual([["1-0", "a"]]);
  expect(text("data:a\ndata: b\ndata:  c\n\n").frames).toEqual([[undefined, "a\nb\n c"]]);
  expect(text("data\n\n").frames).toEqual([[undefined, ""]]);
  expect(text("event: x\nfoo: bar\n\n").frames).toEqual([]);
  expect(text("id: 5-1\n\ndata: x\n\n").frames).toEqual([
    ["5-1", undefined],
    [undefined, "x"],
  ]);
  expect(text("data: unfinished\n").frames).toEqual([]);
});

test("an id with NUL is ignored, and so is a retry that is no number", () => {
  expect(text("id: 1\u00002\ndata: a\n\n").frames).toEqual([[undefined, "a"]]);
  expect(text("retry: 1500\nretry: x1\nretry:\nretry: -5\n\n").retries).toEqual([1500]);
});

test("a byte order mark before the first field is dropped", () => {
  expect(text("\ufeffdata: a\n\n").frames).toEqual([[undefined, "a"]]);
});

test("lines end with CR LF, LF or CR, and with nothing else", () => {
  const separators = "\u000b \u000c \u0085 \u2028 \u2029";
  expect(text(`data: a\r\rdata: ${separators}\n\ndata: b\r\n\r\ndata: c\n\n`).frames).toEqual([
    [undefined, "a"],
    [undefined, separators],
    [undefined, "b"],
    [undefined, "c"],
  ]);
});

test("however the bytes are cut, the frames are the same", () => {
  const random = randomOf(7);
  const pick = <T>(values: T[]) => values[Math.floor(random() * values.length)] as T;
  for (let round = 0; round < 300; round++) {
    let stream = random() < 0.2 ? "\ufeff" : "";
    for (let n = 0; n < 8; n++) {
      const end = pick(["\n", "\r\n", "\r"]);
      const lines = [`data: ${pick(["x", "漢字 😀", "", '{"a":1}', "a: b"])}`, `id: ${n}-0`, ": note", "retry: 9"];
      stream += lines.filter(() => random() < 0.7).join(end) + end + end;
    }
    stream += "data: last\n\n"; // what follows a last CR decides whether it is a line's end
    const bytes = new TextEncoder().encode(stream);
    const cuts = Array.from({ length: 12 }, () => Math.floor(random() * (bytes.length + 1))).sort((a, b) => a - b);
    expect(parse(bytes, cuts), `round ${round}`).toEqual(parse(bytes));
    expect(parse(bytes, [...bytes.keys()]), `round ${round}, byte by byte`).toEqual(parse(bytes));
  }
});

test("an event without an end is given up before it fills the memory", () => {
  const take = makeParser(
    () => {},
    () => {},
  );
  const piece = "x".repeat(2 ** 23);
  take("data: ");
  take(piece);
  expect(() => {
    take(piece);
    take(piece);
  }).toThrow(expect.objectContaining({ code: "network" }));
});
