// Gives Node before 22 the `JSON.rawJSON` that browsers have (Chromium 114, Firefox 135, Safari 18.4): V8 has it behind
// a flag there. Import before what is tested.

import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

type Reviver = (key: string, value: unknown) => unknown;

const native = globalThis.JSON;

/** An error of the other context, as one of ours. */
function own(error: unknown): unknown {
  const { name, message } = error as Error;
  return name === "RangeError" ? new RangeError(message) : new SyntaxError(message);
}

if (!("rawJSON" in native)) {
  setFlagsFromString("--harmony-json-parse-with-source");
  const newer: JSON = runInNewContext("JSON");
  const parse = (text: string, reviver?: Reviver) => {
    if (reviver === undefined) return native.parse(text);
    try {
      return newer.parse(text, reviver);
    } catch (error) {
      throw own(error);
    }
  };
  globalThis.JSON = Object.create(newer, { parse: { value: parse } });
}
