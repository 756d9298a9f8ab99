// The order in which calls are shown: the newest first, and below each call those that are part of it. Pure.

import type { ToolCall } from "../view.js";

export interface Row {
  readonly call: ToolCall;
  readonly depth: number;
}

/** Rows of the calls given oldest first. A call whose parent is unknown, or that would be its own, is an outermost one. */
export function arranged(calls: ReadonlyMap<string, ToolCall>): Row[] {
  const children = new Map<string | null, ToolCall[]>();
  for (const call of calls.values()) {
    const parent = call.parentId !== null && calls.has(call.parentId) ? call.parentId : null;
    const siblings = children.get(parent);
    if (siblings === undefined) children.set(parent, [call]);
    else siblings.push(call);
  }
  const rows: Row[] = [];
  const seen = new Set<string>();
  const place = (call: ToolCall, depth: number): void => {
    if (seen.has(call.id)) return;
    seen.add(call.id);
    rows.push({ call, depth });
    for (const child of children.get(call.id) ?? []) place(child, depth + 1);
  };
  for (const call of [...(children.get(null) ?? [])].reverse()) place(call, 0);
  for (const call of calls.values()) place(call, 0); // what is left goes round in a circle
  return rows;
}
