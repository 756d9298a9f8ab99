// What an event says, in one line of text. Made for the rows that are seen only, and kept as long as their entries.

import { isObject, oneLine, parseExact } from "../src/text.js";
import type { Entry } from "./log.js";

const LIMIT = 200; // characters
const made = new WeakMap<Entry, string>();

/** Return the line for an entry; its text shows invisible characters by number. */
export function summaryOf(entry: Entry): string {
  let line = made.get(entry);
  if (line === undefined) {
    line = summarize(entry.type, entry.raw);
    made.set(entry, line);
  }
  return line;
}

/** Return the line for an event's JSON text; the text itself, cut, where it is no JSON. */
export function summarize(type: string, raw: string): string {
  let event: unknown;
  try {
    event = parseExact(raw);
  } catch {
    return oneLine(raw, LIMIT);
  }
  if (!isObject(event)) return oneLine(raw, LIMIT);
  const data = isObject(event.data) ? event.data : event;
  return partsOf(type, data)
    .map((part) => oneLine(part, LIMIT))
    .filter(Boolean)
    .join(" · ");
}

function partsOf(type: string, data: Record<string, unknown>): unknown[] {
  const details = isObject(data.details) ? data.details : {};
  switch (type) {
    case "tool_status":
      return [data.tool_name, data.status, progressOf(details.progress), details.parameters];
    case "permission_request":
      return [data.tool_name, data.risk_level, data.message, data.parameters];
    case "permission_response_result":
      return [data.approved === true ? "approved" : "denied", data.scope, data.reason];
    case "permission_cleared":
      return [data.tool_name, data.outcome, data.resolved_by, data.reason];
    case "tool_result":
      return [data.tool_name, data.success === true ? "success" : "no success", data.error, data.result];
    case "result_cleared":
      return [data.tool_call_id];
    case "stream_reset":
      return [data.reason];
    case "error":
      return [data.code, data.message];
    default:
      return [data];
  }
}

function progressOf(value: unknown): string {
  if (!isObject(value)) return "";
  const total = value.total === undefined || value.total === null ? "" : ` / ${oneLine(value.total, 30)}`;
  return [`${oneLine(value.progress, 30)}${total}`, oneLine(value.message, 100)].filter(Boolean).join(" ");
}
