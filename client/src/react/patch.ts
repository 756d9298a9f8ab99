// The JSON Merge Patch (RFC 7396, https://www.rfc-editor.org/rfc/rfc7396) that makes edited parameters of shown ones,
// or the reason why there is none. Pure.

import { inexactNumber, isObject, keepsDigits, parseExact } from "../text.js";

type JsonObject = Record<string, unknown>;

/** Why an edit cannot be sent. `pointer` is a JSON pointer (RFC 6901). */
export type EditProblem =
  | { readonly kind: "syntax"; readonly detail: string }
  | { readonly kind: "not_object" }
  | { readonly kind: "too_deep" }
  /** A literal null, which a merge patch takes for "remove". */
  | { readonly kind: "null"; readonly pointer: string }
  /** A number that the service would round. */
  | { readonly kind: "inexact"; readonly number: string };

/** What an edited text comes to; `patch` is `{}` when nothing changed. */
export type Edit =
  | { readonly ok: true; readonly value: JsonObject; readonly patch: JsonObject }
  | { readonly ok: false; readonly problem: EditProblem };

const MAX_DEPTH = 200;

class Inexpressible extends Error {
  readonly problem: EditProblem;

  constructor(problem: EditProblem) {
    super(problem.kind);
    this.problem = problem;
  }
}

/** Read an edited JSON text and find what changes `base` into it. */
export function readEdit(base: unknown, text: string): Edit {
  try {
    const value = parseExact(text);
    if (!isObject(value) || !isObject(base)) return { ok: false, problem: { kind: "not_object" } };
    boundDepth(value, 0);
    const patch = difference(base, value, "");
    // Without `JSON.rawJSON` the patch has no more than the rounded numbers: then it is the text that tells.
    const number = inexactNumber(keepsDigits() ? JSON.stringify(patch) : text);
    if (number !== undefined) return { ok: false, problem: { kind: "inexact", number } };
    return { ok: true, value, patch };
  } catch (error) {
    return { ok: false, problem: problemOf(error) };
  }
}

/** Whether an edit can be sent and changes anything; another order of keys is no change. */
export function isChanged(edit: Edit | null): boolean {
  return edit?.ok === true && Object.keys(edit.patch).length > 0;
}

function problemOf(error: unknown): EditProblem {
  if (error instanceof Inexpressible) return error.problem;
  if (error instanceof SyntaxError) return { kind: "syntax", detail: error.message };
  if (error instanceof RangeError) return { kind: "too_deep" }; // the engine's own stack, in JSON.parse
  throw error;
}

function boundDepth(value: unknown, depth: number): void {
  if (depth > MAX_DEPTH) throw new Inexpressible({ kind: "too_deep" });
  if (Array.isArray(value)) for (const item of value) boundDepth(item, depth + 1);
  else if (isObject(value)) for (const item of Object.values(value)) boundDepth(item, depth + 1);
}

function difference(base: JsonObject, edited: JsonObject, path: string): JsonObject {
  const entries: [string, unknown][] = [];
  for (const key of Object.keys(base)) if (!Object.hasOwn(edited, key)) entries.push([key, null]);
  for (const [key, value] of Object.entries(edited)) {
    const before = Object.hasOwn(base, key) ? base[key] : undefined;
    const entry = before !== undefined && same(before, value) ? undefined : changed(before, value, pointer(path, key));
    if (entry !== undefined) entries.push([key, entry]);
  }
  return Object.fromEntries(entries); // which makes also `__proto__` an own key
}

function changed(before: unknown, value: unknown, path: string): unknown {
  if (value === null) throw new Inexpressible({ kind: "null", pointer: path });
  // An object merges into what was there; into anything but an object as into {}.
  return isObject(value) ? difference(isObject(before) ? before : {}, value, path) : value;
}

/** Whether two JSON values are the same; objects whatever the order of their keys, numbers digit by digit. */
export function same(one: unknown, other: unknown): boolean {
  if (Array.isArray(one)) {
    return Array.isArray(other) && one.length === other.length && one.every((item, at) => same(item, other[at]));
  }
  if (isObject(one)) {
    if (!isObject(other)) return false;
    const keys = Object.keys(one);
    return (
      keys.length === Object.keys(other).length &&
      keys.every((key) => Object.hasOwn(other, key) && same(one[key], other[key]))
    );
  }
  return !Array.isArray(other) && !isObject(other) && JSON.stringify(one) === JSON.stringify(other);
}

function pointer(path: string, key: string): string {
  return `${path}/${key.replaceAll("~", "~0").replaceAll("/", "~1")}`;
}
