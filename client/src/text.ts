// How values become text that can be trusted by who reads it: nothing invisible, nothing rounded, nothing that reorders.
// Pure; it never makes markup, and what it returns is to be shown as text.

import type { ReceivedEvent } from "./types.js";

/** What `JSON.parse` tells a reviver about a primitive, where the engine has it (ES proposal "JSON.parse source text access"). */
interface SourceContext {
  readonly source?: string;
}

interface ExactJSON {
  parse(text: string, reviver?: (key: string, value: unknown, context?: SourceContext) => unknown): unknown;
  rawJSON?: (text: string) => unknown;
  isRawJSON?: (value: unknown) => value is { readonly rawJSON: string };
}

const EXACT: ExactJSON = JSON;

// Controls, formats (bidirectional ones among them), surrogates, private and unassigned, and what is drawn as nothing.
// U+FE0F, which only asks for an emoji's colours, stays.
const UNSEEN = new RegExp(
  "[\\p{Cc}\\p{Cf}\\p{Cs}\\p{Co}\\p{Cn}\\p{Zl}\\p{Zp}" +
    "\\u034f\\u115f\\u1160\\u17b4\\u17b5\\u180b-\\u180d\\u180f\\u2800\\u3164\\ufe00-\\ufe0e\\uffa0\\u{e0100}-\\u{e01ef}]",
  "gu",
);

const LONG_NUMBER = /\d[\d.]{15}|\d\.?\d*[eE][+-]?\d{2}/;

/** Show control, bidirectional and invisible characters by number, `\u{202e}`; a line feed stays. */
export function visible(text: string): string {
  return text.replace(UNSEEN, (char) => (char === "\n" ? char : `\\u{${char.codePointAt(0)?.toString(16)}}`));
}

/** Indented JSON of any value, whole, with invisible characters by number; `""` for `undefined`. */
export function pretty(value: unknown): string {
  return visible(JSON.stringify(value, null, 2) ?? "");
}

/**
 * Indented JSON to be edited: it parses back to the same value, and what is invisible stands as JSON's own escape,
 * `\u202e`.
 */
export function editable(value: unknown): string {
  return (JSON.stringify(value, null, 2) ?? "null").replace(UNSEEN, (char) => (char === "\n" ? char : escaped(char)));
}

function escaped(char: string): string {
  return Array.from({ length: char.length }, (_, at) => `\\u${char.charCodeAt(at).toString(16).padStart(4, "0")}`).join(
    "",
  );
}

/** Cut a text to `limit` characters and say how many more there are. Never for what is to be approved. */
export function cut(text: string, limit: number): string {
  return text.length > limit ? `${text.slice(0, limit)}… (+${text.length - limit})` : text;
}

/** One line of text for any value: strings as they are, the rest as JSON; at most `limit` characters, then cut. */
export function oneLine(value: unknown, limit = 300): string {
  if (value === undefined || value === null) return "";
  const text = typeof value === "string" ? value : (JSON.stringify(value) ?? "");
  return cut(visible(cut(text, limit).replace(/\s*\n\s*/g, " ")), limit);
}

/** Whether this engine can keep the digits of a number that a double would round: it has `JSON.rawJSON`. */
export function keepsDigits(): boolean {
  return EXACT.rawJSON !== undefined;
}

/**
 * `JSON.parse` that keeps the digits of numbers which a double would round: they become `JSON.rawJSON` objects, which
 * `JSON.stringify` writes as they came. In an engine without it they are rounded, see {@link keepsDigits}.
 *
 * @throws SyntaxError where the text is not JSON.
 */
export function parseExact(text: string): unknown {
  const { rawJSON } = EXACT;
  if (rawJSON === undefined || !LONG_NUMBER.test(text)) return JSON.parse(text);
  return EXACT.parse(text, (_key, value, context) =>
    typeof value === "number" && context?.source !== undefined && rounds(value, context.source)
      ? rawJSON(context.source)
      : value,
  );
}

function rounds(value: number, source: string): boolean {
  if (!Number.isFinite(value) || (Number.isInteger(value) && !Number.isSafeInteger(value))) return true;
  const digits = source.replace(/[eE].*$|[-.]/g, "").replace(/^0+/, "");
  return (digits.length > 15 && JSON.stringify(value) !== source) || (value === 0 && digits !== "");
}

/**
 * Whether a value holds a number that this engine has rounded: true only in engines without `JSON.rawJSON`. Say so
 * beside what is to be approved.
 */
export function isRounded(value: unknown): boolean {
  if (typeof value === "number")
    return !Number.isFinite(value) || (Number.isInteger(value) && !Number.isSafeInteger(value));
  if (Array.isArray(value)) return value.some(isRounded);
  return isObject(value) && Object.values(value).some(isRounded);
}

/**
 * The first number in a JSON text that is not sent as it stands: one with a fraction or an exponent which a double
 * rounds, as the service does too; where this engine does not keep digits, any that it rounds. Undefined when
 * there is none.
 */
export function inexactNumber(json: string): string | undefined {
  const numbers = json.replace(/"(?:[^"\\]|\\.)*"/g, '""').match(/-?\d[\d.eE+-]*/g) ?? [];
  const whole = /^-?\d+$/;
  return numbers.find((one) => !(keepsDigits() && whole.test(one)) && decimal(one) !== decimal(String(Number(one))));
}

/** A number's digits without the zeros around them, and its exponent: the same for the same number. */
function decimal(number: string): string {
  const found = /^(-?)(\d+)(?:\.(\d+))?(?:[eE]([+-]?\d+))?$/.exec(number);
  if (found === null) return number; // Infinity
  const [, sign, whole = "", fraction = "", exponent = "0"] = found;
  const digits = (whole + fraction).replace(/^0+/, "");
  const short = digits.replace(/0+$/, "");
  return short === "" ? "0" : `${sign}${short}e${Number(exponent) - fraction.length + digits.length - short.length}`;
}

/** Whether a value is a number kept as text by {@link parseExact}. */
export function isRawNumber(value: unknown): boolean {
  return EXACT.isRawJSON?.(value) ?? false;
}

/** A finite number, also one kept as text, which is rounded; null for anything else. */
export function numberOf(value: unknown): number | null {
  const number = typeof value === "number" ? value : isRawNumber(value) ? Number(JSON.stringify(value)) : Number.NaN;
  return Number.isFinite(number) ? number : null;
}

/** Whether a value is a JSON object (no array, no null, no number kept as text). */
export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value) && !isRawNumber(value);
}

/** An event's `data` with every digit of its numbers; costs a parse only where there are long ones. */
export function exactData(event: ReceivedEvent): Record<string, unknown> {
  const given: unknown = event.data;
  if (LONG_NUMBER.test(event.raw)) {
    const whole = parseExact(event.raw);
    if (isObject(whole) && isObject(whole.data)) return whole.data;
  }
  return isObject(given) ? given : {};
}
