// What a session's events add up to: its tool calls, its open permission requests, what became of the settled ones.
// A pure reducer with bounds on all it keeps; it never asks the network, the DOM or, but for a default argument, the clock.

import type { RiskLevel, Status } from "./events.js";
import { exactData, isObject, numberOf, oneLine } from "./text.js";
import type { ReceivedEvent } from "./types.js";
import type { CallProgress, CallResult, OpenRequest, Outcome, SessionView, ToolCall } from "./view.js";

export type { CallProgress, CallResult, OpenRequest, Outcome, SessionView, ToolCall } from "./view.js";

export const MAX_CALLS = 200;
const MAX_OPEN_CALLS = 1000;
const MAX_REQUESTS = 1000;
const MAX_OUTCOMES = 20;
const MAX_SETTLED = 1000;
const MAX_OFFSETS = 8;
const NAME_LIMIT = 512;

const EMPTY: SessionView = {
  calls: new Map(),
  requests: [],
  outcomes: [],
  settled: new Set(),
  error: null,
  reset: null,
  closed: false,
  count: 0,
  lastEvent: null,
  heartbeatAt: null,
  clockOffset: 0,
  offsets: [],
};

const ENDED: ReadonlySet<string> = new Set(["completed", "failed", "denied", "cancelled"]);

/** Whether a call is over: by its status, or because its result is there. */
export function isEnded(call: ToolCall): boolean {
  return ENDED.has(call.status) || call.result !== null;
}

/** The view before any event. */
export function emptySession(): SessionView {
  return EMPTY;
}

type Data = Record<string, unknown>;

/** What each type of event does; other types, which a later service may send, only count. */
const REDUCERS: Record<string, (view: SessionView, data: Data, event: ReceivedEvent) => SessionView> = {
  tool_status: withStatus,
  tool_result: withResult,
  result_cleared: withoutResult,
  permission_request: withRequest,
  permission_cleared: withCleared,
  stream_reset: (view, data) => ({ ...EMPTY, ...clockOf(view), count: view.count, reset: text(data.reason) }),
  error: withError,
};

/**
 * The view after one more event; the one given stays as it is.
 *
 * @param now this computer's clock, Unix milliseconds.
 */
export function reduceSession(view: SessionView, event: ReceivedEvent, now: number = Date.now()): SessionView {
  if (event.type === "heartbeat") return withHeartbeat(view, event.data, now);
  const reducer = Object.hasOwn(REDUCERS, event.type) ? REDUCERS[event.type] : undefined;
  const next = reducer === undefined ? view : reducer(view, exactData(event), event);
  return { ...next, count: view.count + 1, lastEvent: event };
}

/** The view without a request: answered here, cleared, or unknown to the service; with what became of it, if known. */
export function settleRequest(view: SessionView, requestId: string, outcome?: Outcome): SessionView {
  const requests = view.requests.filter((request) => request.id !== requestId);
  const settled = bounded(view.settled, requestId);
  if (outcome === undefined) return { ...view, requests, settled };
  const others = view.outcomes.filter((one) => one.requestId !== requestId);
  return { ...view, requests, settled, outcomes: [...others, outcome].slice(-MAX_OUTCOMES) };
}

/** The view with its last error put away. */
export function dismissError(view: SessionView): SessionView {
  return { ...view, error: null, reset: null };
}

/** The service's clock, Unix milliseconds, as far as its heartbeats tell. */
export function serviceNow(view: Pick<SessionView, "clockOffset">, now: number = Date.now()): number {
  return now + view.clockOffset;
}

/** How long a call took, or has taken until `serviceTime`; milliseconds, null where it did not say when it began. */
export function durationMs(call: ToolCall, serviceTime: number): number | null {
  if (call.result?.durationMs != null) return call.result.durationMs;
  if (call.startedAt === null) return null;
  return Math.max(0, (call.endedAt ?? serviceTime) - call.startedAt);
}

function withStatus(view: SessionView, data: Data): SessionView {
  const id = callId(data);
  const details = isObject(data.details) ? data.details : {};
  const status = text(data.status) as Status;
  const before = view.calls.get(id);
  const anew = before === undefined || (ENDED.has(before.status) && !ENDED.has(status));
  const old = anew ? newCall(id, data) : before;
  const time = instant(data.timestamp);
  const call: ToolCall = {
    ...old,
    status,
    risk: (orNull(details.risk_level) as RiskLevel | null) ?? old.risk,
    server: orNull(details.server) ?? old.server,
    parameters: details.parameters ?? old.parameters,
    originalParameters: details.original_parameters ?? old.originalParameters,
    progress: progressOf(details.progress) ?? (status === "executing" ? old.progress : null),
    parentId: orNull(details.parent_tool_call_id) ?? old.parentId,
    cancellable: typeof details.cancellable === "boolean" ? details.cancellable : old.cancellable,
    startedAt: instant(details.start_time) ?? old.startedAt ?? time,
    endedAt: ENDED.has(status) ? (old.endedAt ?? time) : null,
  };
  return { ...view, calls: placed(view.calls, call, anew) };
}

function withResult(view: SessionView, data: Data): SessionView {
  const id = callId(data);
  const before = view.calls.get(id);
  const success = data.success === true;
  const old = before ?? { ...newCall(id, data), status: (success ? "completed" : "failed") as Status };
  const result: CallResult = {
    success,
    value: data.result,
    error: orNull(data.error),
    durationMs: numberOf(data.duration_ms),
  };
  const call = { ...old, result, progress: null, endedAt: old.endedAt ?? instant(data.timestamp) };
  return { ...view, calls: placed(view.calls, call, before === undefined) };
}

function withoutResult(view: SessionView, data: Data): SessionView {
  const id = orNull(data.tool_call_id);
  const calls = new Map(view.calls);
  for (const [key, call] of calls) {
    if (call.result !== null && (id === null || id === key)) calls.set(key, { ...call, result: null });
  }
  return { ...view, calls };
}

function withRequest(view: SessionView, data: Data): SessionView {
  const id = orNull(data.request_id);
  if (id === null || view.settled.has(id) || view.requests.some((request) => request.id === id)) return view;
  const request: OpenRequest = {
    id,
    callId: callId(data),
    tool: text(data.tool_name),
    server: orNull(data.server),
    risk: text(data.risk_level) as RiskLevel,
    parameters: data.parameters ?? {},
    message: orNull(data.message),
    expiresAt: instant(data.expires_at),
    editable: data.editable === true,
    scopes: Array.isArray(data.scopes) ? data.scopes : ["once"],
    masked: Array.isArray(data.masked) ? data.masked.filter((path) => typeof path === "string") : [],
    truncated: data.truncated === true,
    digest: orNull(data.digest),
  };
  // Those that have waited longest expire first: what is too much is the newest.
  return { ...view, requests: [...view.requests, request].slice(0, MAX_REQUESTS) };
}

function withCleared(view: SessionView, data: Data): SessionView {
  const id = orNull(data.request_id);
  // A snapshot with nothing to decide. After a lost history a settled request may be open again.
  if (id === null) return { ...view, requests: [], settled: EMPTY.settled };
  const outcome: Outcome = {
    requestId: id,
    tool: text(data.tool_name),
    outcome: text(data.outcome),
    reason: orNull(data.reason),
    resolvedBy: orNull(data.resolved_by),
    edited: isObject(data.parameters_patch),
    at: instant(data.timestamp),
  };
  return settleRequest(view, id, outcome);
}

function withError(view: SessionView, _data: Data, event: ReceivedEvent): SessionView {
  const data: unknown = event.data;
  const fields = isObject(data) ? data : {};
  const error = { code: text(fields.code), message: text(fields.message) };
  // Without an id it says why the stream ends, which is the connection's matter: a renewed token alarms nobody.
  if (event.id === null && error.code !== "session_closed") return view;
  // Its requests went with it.
  return error.code === "session_closed" ? { ...view, error, requests: [], closed: true } : { ...view, error };
}

function withHeartbeat(view: SessionView, data: unknown, now: number): SessionView {
  const timestamp = isObject(data) ? data.timestamp : undefined;
  if (typeof timestamp !== "number") return { ...view, heartbeatAt: now };
  // A delay on the way only makes the service look late, so the largest of the last offsets is the truest.
  const offsets = [...view.offsets, timestamp * 1000 - now].slice(-MAX_OFFSETS);
  return { ...view, heartbeatAt: now, offsets, clockOffset: Math.max(...offsets) };
}

function newCall(id: string, data: Data): ToolCall {
  return {
    id,
    tool: text(data.tool_name),
    status: "pending",
    risk: null,
    server: null,
    parameters: undefined,
    originalParameters: undefined,
    progress: null,
    result: null,
    startedAt: null,
    endedAt: null,
    parentId: null,
    cancellable: false,
  };
}

/** The calls with one put in its place: a new one, or one begun anew, last. */
function placed(calls: ReadonlyMap<string, ToolCall>, call: ToolCall, last: boolean): ReadonlyMap<string, ToolCall> {
  const next = new Map(calls);
  if (last) next.delete(call.id);
  next.set(call.id, call);
  if (next.size > MAX_CALLS) evict(next, call.id);
  return next;
}

// What still runs is kept before what is over, however old; only far too many running ones lose the oldest.
function evict(calls: Map<string, ToolCall>, keep: string): void {
  for (const [id, call] of calls) {
    if (id !== keep && isEnded(call)) {
      calls.delete(id);
      return;
    }
  }
  const oldest = calls.keys().next().value;
  if (calls.size > MAX_OPEN_CALLS && oldest !== undefined) calls.delete(oldest);
}

function progressOf(value: unknown): CallProgress | null {
  if (!isObject(value)) return null;
  const done = numberOf(value.progress);
  const total = numberOf(value.total);
  if (done === null) return null;
  return { done, total: total !== null && total > 0 ? total : null, message: oneLine(value.message) };
}

function clockOf(view: SessionView): Pick<SessionView, "heartbeatAt" | "clockOffset" | "offsets"> {
  return { heartbeatAt: view.heartbeatAt, clockOffset: view.clockOffset, offsets: view.offsets };
}

function bounded(ids: ReadonlySet<string>, id: string): ReadonlySet<string> {
  const next = new Set(ids).add(id);
  const oldest = next.values().next().value;
  if (next.size > MAX_SETTLED && oldest !== undefined) next.delete(oldest);
  return next;
}

/** Calls without an id count as one call of their tool. */
function callId(data: Data): string {
  return orNull(data.tool_call_id) ?? text(data.tool_name);
}

function text(value: unknown): string {
  return typeof value === "string" ? value : oneLine(value, NAME_LIMIT);
}

function orNull(value: unknown): string | null {
  return value === undefined || value === null ? null : text(value);
}

function instant(value: unknown): number | null {
  const time = typeof value === "string" ? Date.parse(value) : Number.NaN;
  return Number.isNaN(time) ? null : time;
}
