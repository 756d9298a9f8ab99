import "./exact-json.js";
import { describe, expect, test } from "vitest";
import {
  dismissError,
  durationMs,
  emptySession,
  isEnded,
  MAX_CALLS,
  reduceSession,
  serviceNow,
  settleRequest,
} from "../src/session.js";
import type { ReceivedEvent } from "../src/types.js";
import type { SessionView } from "../src/view.js";

const AT = "2026-01-15T10:30:00Z";
const LATER = "2026-01-15T10:30:02.500Z";
const MS = Date.parse(AT);

function event(type: string, data: object, id: string | null = "1-0"): ReceivedEvent {
  const whole = type === "heartbeat" || type === "error" ? { type, ...data } : { type, data };
  return { id, type, data, raw: JSON.stringify(whole) } as unknown as ReceivedEvent;
}

function viewOf(...events: ReceivedEvent[]): SessionView {
  return events.reduce((view, one) => reduceSession(view, one, MS), emptySession());
}

function status(id: string, state: string, details: object = {}, timestamp = AT): ReceivedEvent {
  const data = { status: state, tool_name: `tool ${id}`, tool_call_id: id, timestamp };
  return event("tool_status", { ...data, details: { parameters: { q: 1 }, risk_level: "low", ...details } });
}

function result(id: string, success: boolean, more: object = {}): ReceivedEvent {
  const data = { tool_name: `tool ${id}`, tool_call_id: id, result: { n: 5 }, success, timestamp: LATER };
  return event("tool_result", { ...data, ...more });
}

function request(id: string, more: object = {}): ReceivedEvent {
  const data = { tool_name: "edit", parameters: { file: "a" }, risk_level: "high", timestamp: AT, status: "pending" };
  const own = {
    request_id: id,
    tool_call_id: `c-${id}`,
    expires_at: LATER,
    editable: true,
    scopes: ["once", "session"],
  };
  return event("permission_request", { ...data, ...own, ...more });
}

function cleared(id: string | null, outcome = "approved"): ReceivedEvent {
  const data = { request_id: id, tool_call_id: null, tool_name: "edit", outcome, reason: null, resolved_by: "bob" };
  return event("permission_cleared", { ...data, timestamp: AT });
}

const call = (view: SessionView, id: string) => view.calls.get(id);
const open = (view: SessionView) => view.requests.map((one) => one.id);

describe("tool calls", () => {
  test("a call collects what its statuses and its result say", () => {
    const view = viewOf(
      status("a", "pending", { start_time: AT, server: "fs", cancellable: true, parent_tool_call_id: "p" }),
      status("a", "executing", { progress: { progress: 3, total: 10, message: "reading" } }),
      status("a", "completed", {}, LATER),
      result("a", true, { duration_ms: 1234.5 }),
    );
    expect(call(view, "a")).toMatchObject({
      tool: "tool a",
      status: "completed",
      risk: "low",
      server: "fs",
      cancellable: true,
      parentId: "p",
      progress: null,
      startedAt: MS,
      endedAt: MS + 2500,
      result: { success: true, value: { n: 5 }, error: null, durationMs: 1234.5 },
    });
  });

  test("progress stays until the next one, and an end without a total is unknown", () => {
    const view = viewOf(status("a", "executing", { progress: { progress: 3 } }), status("a", "executing"));
    expect(call(view, "a")?.progress).toEqual({ done: 3, total: null, message: "" });
  });

  test.each(["denied", "cancelled"])("a call that was %s stays so when its result comes", (state) => {
    const view = viewOf(status("a", state), result("a", false, { error: "no" }));
    expect([call(view, "a")?.status, call(view, "a")?.result?.error]).toEqual([state, "no"]);
  });

  test.each([
    [true, "completed"],
    [false, "failed"],
  ])("a result of success %s without any status is a call that %s", (success, state) => {
    expect(call(viewOf(result("a", success)), "a")?.status).toBe(state);
  });

  test("a status after the end begins the call anew, as the newest one", () => {
    const view = viewOf(status("a", "completed"), result("a", true), status("b", "pending"), status("a", "executing"));
    expect([[...view.calls.keys()], call(view, "a")?.result, call(view, "a")?.endedAt]).toEqual([
      ["b", "a"],
      null,
      null,
    ]);
  });

  test("result_cleared takes one result away, and without an id all of them", () => {
    const two = viewOf(result("a", true), result("b", true));
    const one = reduceSession(two, event("result_cleared", { tool_call_id: "a", timestamp: AT }));
    const none = reduceSession(two, event("result_cleared", { tool_call_id: null, timestamp: AT }));
    const left = (view: SessionView) => [...view.calls.values()].filter((each) => each.result).map((each) => each.id);
    expect([left(one), left(none)]).toEqual([["b"], []]);
  });

  test("a call without an id is its tool's only one, whatever the tool is named", () => {
    const view = viewOf(
      event("tool_status", { status: "executing", tool_name: "__proto__", timestamp: AT, details: {} }),
    );
    expect([...view.calls.keys()]).toEqual(["__proto__"]);
  });

  test("closed calls go before running ones, and running ones are bounded too", () => {
    const many = Array.from({ length: MAX_CALLS }, (_, at) => status(`done ${at}`, "completed"));
    const view = viewOf(status("running", "executing"), ...many, status("last", "executing"));
    expect([view.calls.size, view.calls.has("running"), view.calls.has("done 1"), view.calls.has("last")]).toEqual([
      MAX_CALLS,
      true,
      false,
      true,
    ]);
    const running = viewOf(...Array.from({ length: 1500 }, (_, at) => status(`${at}`, "executing")));
    expect([running.calls.size, running.calls.has("1499")]).toEqual([1000, true]);
  });

  test("large numbers in parameters keep their digits", () => {
    const raw = `{"type":"tool_status","data":{"status":"executing","tool_name":"t","tool_call_id":"a","details":{"parameters":{"id":9007199254740993}}}}`;
    const view = reduceSession(emptySession(), { id: "1-0", ...JSON.parse(raw), raw });
    expect(JSON.stringify(call(view, "a")?.parameters)).toBe('{"id":9007199254740993}');
  });

  test("the duration is the service's, else the time between, else the time so far", () => {
    const started = { start_time: AT };
    const views = [
      viewOf(status("a", "executing", started), result("a", true, { duration_ms: 7 })),
      viewOf(status("a", "executing", started), status("a", "completed", {}, LATER)),
      viewOf(status("a", "executing", started)),
    ];
    const durations = views.map((view) => {
      const one = call(view, "a");
      return one && durationMs(one, MS + 9000);
    });
    expect(durations).toEqual([7, 2500, 9000]);
  });

  test("a call is over by its status or its result", () => {
    const calls = [
      viewOf(status("a", "executing")),
      viewOf(status("a", "denied")),
      viewOf(status("a", "executing"), result("a", true)),
    ];
    const ended = calls.map((view) => [...view.calls.values()].map(isEnded));
    expect(ended).toEqual([[false], [true], [true]]);
  });
});

describe("permission requests", () => {
  test("they stand in the order of their coming, a repeat changes nothing", () => {
    const view = viewOf(request("1"), request("2"), request("1"));
    expect([open(view), view.requests[0]]).toEqual([
      ["1", "2"],
      {
        id: "1",
        callId: "c-1",
        tool: "edit",
        server: null,
        risk: "high",
        parameters: { file: "a" },
        message: null,
        expiresAt: MS + 2500,
        editable: true,
        scopes: ["once", "session"],
        masked: [],
        truncated: false,
        digest: null,
      },
    ]);
  });

  test("a repeat that crossed the clearing does not bring the card back", () => {
    const view = viewOf(request("1"), cleared("1"), request("1"));
    expect([open(view), view.outcomes.map((one) => [one.requestId, one.outcome, one.resolvedBy])]).toEqual([
      [],
      [["1", "approved", "bob"]],
    ]);
  });

  test("a snapshot with nothing to decide takes every card away and remembers nothing of them", () => {
    const view = viewOf(request("1"), cleared("2"), cleared(null, "none"));
    expect([open(view), view.settled.size, view.outcomes.length]).toEqual([[], 0, 1]);
  });

  test("an answer given here takes the card away before the clearing comes, which is told once", () => {
    const here = {
      requestId: "1",
      tool: "edit",
      outcome: "refused",
      reason: null,
      resolvedBy: null,
      edited: false,
      at: null,
    };
    const answered = settleRequest(viewOf(request("1"), request("2")), "1", here);
    const view = reduceSession(answered, cleared("1", "denied"));
    expect([open(answered), open(view), view.outcomes.map((one) => one.outcome)]).toEqual([["2"], ["2"], ["denied"]]);
  });

  test("of too many open requests those stay that have waited longest", () => {
    const requests = Array.from({ length: 1200 }, (_, at) => event("permission_request", { request_id: `pr_${at}` }));
    const view = viewOf(...requests, cleared("pr_0"));
    expect([view.requests.length, view.requests[0]?.id, view.requests[998]?.id]).toEqual([999, "pr_1", "pr_999"]);
  });

  test("outcomes and settled ids are bounded", () => {
    const view = viewOf(...Array.from({ length: 1200 }, (_, at) => cleared(String(at))));
    expect([view.outcomes.length, view.settled.size, view.settled.has("1199"), view.settled.has("0")]).toEqual([
      20,
      1000,
      true,
      false,
    ]);
  });
});

describe("the stream", () => {
  test("a reset forgets calls, requests and what was settled, and says why", () => {
    const reset = event("stream_reset", { reason: "history_expired", last_event_id: null, timestamp: AT });
    const view = viewOf(status("a", "executing"), cleared("1"), request("2"), reset, request("1"));
    expect([view.calls.size, open(view), view.reset, dismissError(view).reset]).toEqual([
      0,
      ["1"],
      "history_expired",
      null,
    ]);
  });

  test("the service's clock is the least delayed of the last heartbeats", () => {
    const beats = [1000, 1400, 200].map((late) => ({ timestamp: (MS + 5000 - late) / 1000 }));
    const view = viewOf(...beats.map((beat) => event("heartbeat", beat, null)));
    expect([view.clockOffset, serviceNow(view, MS), view.heartbeatAt, view.count]).toEqual([4800, MS + 4800, MS, 0]);
  });

  test("a heartbeat leaves calls and requests as they are", () => {
    const before = viewOf(status("a", "executing"), request("1"));
    const view = reduceSession(before, event("heartbeat", { timestamp: 1 }, null));
    expect([view.calls === before.calls, view.requests === before.requests]).toEqual([true, true]);
  });

  test("an error that only ends a stream is the connection's, not the session's", () => {
    const before = viewOf(request("1"));
    const view = reduceSession(before, event("error", { code: "token_expired", message: "connect again" }, null));
    expect([view.error, view.closed, open(view)]).toEqual([null, false, ["1"]]);
  });

  test("an error is kept until it is put away; a closed session has no requests", () => {
    const view = viewOf(request("1"), event("error", { code: "model_unavailable", message: "later" }));
    const closed = reduceSession(view, event("error", { code: "session_closed", message: "closed" }));
    expect([view.error, open(view), dismissError(view).error, open(closed), closed.closed]).toEqual([
      { code: "model_unavailable", message: "later" },
      ["1"],
      null,
      [],
      true,
    ]);
  });

  test.each(["something_new", "constructor", "__proto__"])("an event of type %s is only counted", (type) => {
    const before = viewOf(request("1"), status("a", "executing"));
    const view = reduceSession(before, event(type, { anything: [1] }));
    expect([view.count, view.calls === before.calls, open(view)]).toEqual([3, true, ["1"]]);
  });

  test.each([
    "tool_status",
    "tool_result",
    "permission_request",
    "permission_cleared",
    "result_cleared",
    "stream_reset",
  ])("%s of the wrong shape breaks nothing", (type) => {
    for (const data of [null, 1, [], { details: 5, parameters: null, tool_name: {}, request_id: {}, scopes: 3 }]) {
      expect(reduceSession(emptySession(), event(type, data as object)).count).toBe(1);
    }
  });

  test("the view given stays as it was", () => {
    const before = viewOf(status("a", "executing"), request("1"));
    const copy = structuredClone({ calls: before.calls, requests: before.requests, settled: before.settled });
    for (const one of [status("a", "failed"), result("a", false), cleared("1"), request("2")])
      reduceSession(before, one);
    expect({ calls: before.calls, requests: before.requests, settled: before.settled }).toEqual(copy);
  });
});
