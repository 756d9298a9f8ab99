// Generated from src/agent_sse/event_models.py by `npm run types`; do not edit.

/**
 * Where a tool call is; `completed`, `failed`, `cancelled` and `denied` are its ends.
 */
export type Status = "pending" | "waiting_permission" | "executing" | "completed" | "failed" | "cancelled" | "denied";
/**
 * How much harm a tool call can do, in this order.
 */
export type RiskLevel = "low" | "medium" | "high" | "critical";

/**
 * What each type of event carries: its `data`, or the fields at the top of `heartbeat` and `error`.
 */
export interface EventData {
  tool_status: ToolStatus;
  permission_request: PermissionRequest;
  permission_response_result: PermissionResponseResult;
  permission_cleared: PermissionCleared;
  tool_result: ToolResult;
  result_cleared: ResultCleared;
  stream_reset: StreamReset;
  heartbeat: Heartbeat;
  error: ServiceError;
}
/**
 * A tool call's state. `pending → executing → completed | failed | cancelled`, or over `waiting_permission`.
 */
export interface ToolStatus {
  status: Status;
  /**
   * 1 to 256 printable characters.
   */
  tool_name: string;
  /**
   * Which call; the tool's name when its agent gave none.
   */
  tool_call_id: string;
  /**
   * ISO 8601 UTC with `Z`.
   */
  timestamp: string;
  details: ToolStatusDetails;
}
/**
 * What a call is about. Open: an agent may add keys of its own.
 */
export interface ToolStatusDetails {
  /**
   * As users see them: secrets are `••••`. Any JSON, an object as a rule.
   */
  parameters: unknown;
  risk_level: RiskLevel;
  /**
   * ISO 8601: when the call began.
   */
  start_time: string;
  progress?: Progress;
  /**
   * The call that made this one.
   */
  parent_tool_call_id?: string;
  /**
   * The MCP server whose tool it is.
   */
  server?: string;
  /**
   * true: `POST cancel/{session_id}` interrupts it.
   */
  cancellable?: boolean;
  /**
   * Those that were asked for, as users see them, where an answer edited them.
   */
  original_parameters?: unknown;
  [k: string]: unknown;
}
/**
 * How far a running call is. It never goes backwards; at most one step in 100 ms is sent.
 */
export interface Progress {
  /**
   * In any unit; finite.
   */
  progress: number;
  /**
   * The end, in the unit of `progress`.
   */
  total?: number;
  /**
   * At most 2000 characters.
   */
  message?: string;
}
/**
 * A question to the user. It may come again, without an id: tell repeats by `request_id`.
 */
export interface PermissionRequest {
  /**
   * 1 to 256 printable characters.
   */
  tool_name: string;
  /**
   * As users see them: secrets are `••••`. Any JSON, an object as a rule.
   */
  parameters: unknown;
  risk_level: RiskLevel;
  /**
   * When it was asked: ISO 8601 UTC with `Z`, on Redis' clock.
   */
  timestamp: string;
  status: "pending";
  /**
   * `pr_…`; the answer names it.
   */
  request_id: string;
  /**
   * The call that waits; the tool's name when its agent gave none.
   */
  tool_call_id: string;
  /**
   * Until when it can be answered: ISO 8601 UTC with `Z`, on Redis' clock.
   */
  expires_at: string;
  /**
   * Whether the answer may have a `parameters_patch`.
   */
  editable: boolean;
  /**
   * What the answer's `scope` may be.
   */
  scopes: ("once" | "session")[];
  /**
   * The MCP server whose tool it is.
   */
  server?: string;
  /**
   * JSON pointers (RFC 6901) of what is hidden in `parameters`.
   */
  masked?: string[];
  /**
   * true: `parameters` are cut, and `digest` is of all of them.
   */
  truncated?: boolean;
  /**
   * SHA-256 in hexadecimal of the parameters' canonical JSON; with `truncated` only.
   */
  digest?: string;
  /**
   * The agent's word, or a policy's reason; at most 2000 characters.
   */
  message?: string;
}
/**
 * An answer that won. What else ends a request says `permission_cleared` only.
 */
export interface PermissionResponseResult {
  /**
   * Always true: an answer that does not win is refused, and in no event.
   */
  success: boolean;
  request_id: string;
  approved: boolean;
  /**
   * The user's word, or empty; at most 2000 characters.
   */
  reason: string;
  /**
   * ISO 8601 UTC with `Z`, on Redis' clock.
   */
  timestamp: string;
  /**
   * The answer holds until the session ends.
   */
  scope?: "session";
  /**
   * With `scope`: for the tool with these parameters, or with any.
   */
  covers?: "arguments" | "tool";
  /**
   * `g_…`: the remembered answer, made here or decided by.
   */
  grant_id?: string;
  /**
   * The user's edit: JSON Merge Patch (RFC 7396).
   */
  parameters_patch?: {
    [k: string]: unknown;
  };
  /**
   * What comes of it, as users see it.
   */
  edited_parameters?: {
    [k: string]: unknown;
  };
  /**
   * SHA-256 in hexadecimal of the canonical JSON of `edited_parameters`.
   */
  edited_digest?: string;
}
/**
 * A question that was shown is settled. With the outcome `none`, in a snapshot: nothing is asked, all is null.
 */
export interface PermissionCleared {
  request_id: string | null;
  tool_call_id: string | null;
  tool_name: string | null;
  outcome: "approved" | "denied" | "expired" | "cancelled" | "none";
  /**
   * The user's word, or `timeout`, `agent_lost`, `withdrawn`.
   */
  reason: string | null;
  /**
   * The subject who answered or cancelled, or `timeout`, `lease`, `agent`, `grant:<id>`.
   */
  resolved_by: string | null;
  /**
   * ISO 8601 UTC with `Z`, on Redis' clock.
   */
  timestamp: string;
  /**
   * The answer holds until the session ends.
   */
  scope?: "session";
  /**
   * With `scope`: for the tool with these parameters, or with any.
   */
  covers?: "arguments" | "tool";
  /**
   * `g_…`: the remembered answer, made here or decided by.
   */
  grant_id?: string;
  /**
   * The user's edit: JSON Merge Patch (RFC 7396).
   */
  parameters_patch?: {
    [k: string]: unknown;
  };
  /**
   * What comes of it, as users see it.
   */
  edited_parameters?: {
    [k: string]: unknown;
  };
  /**
   * SHA-256 in hexadecimal of the canonical JSON of `edited_parameters`.
   */
  edited_digest?: string;
}
/**
 * What a call gave. A call that was denied or cancelled has one too, with `success` false.
 */
export interface ToolResult {
  /**
   * 1 to 256 printable characters.
   */
  tool_name: string;
  /**
   * Any JSON, with secrets as `••••`; null when there is none.
   */
  result: unknown;
  success: boolean;
  /**
   * ISO 8601 UTC with `Z`.
   */
  timestamp: string;
  /**
   * Which call; the tool's name when its agent gave none.
   */
  tool_call_id: string;
  /**
   * Why there is no result.
   */
  error?: string;
  /**
   * Milliseconds; the wait for permission is in it.
   */
  duration_ms?: number;
}
/**
 * The result that is shown is to go away.
 */
export interface ResultCleared {
  /**
   * Whose; null: whichever is shown.
   */
  tool_call_id: string | null;
  /**
   * ISO 8601 UTC with `Z`.
   */
  timestamp: string;
}
/**
 * Forget what you have: the events after your cursor are not known any more, and a snapshot follows.
 */
export interface StreamReset {
  reason: "history_expired" | "invalid_cursor" | "history_lost";
  /**
   * `<ms>-<seq>`: the event up to which the snapshot tells.
   */
  last_event_id: string;
  /**
   * ISO 8601 UTC with `Z`, on Redis' clock.
   */
  timestamp: string;
}
/**
 * The connection lives.
 */
export interface Heartbeat {
  /**
   * Unix seconds, with a fraction.
   */
  timestamp: number;
}
/**
 * An agent's error, or why the stream ends (`token_expired`, `session_closed`, `unavailable`).
 */
export interface ServiceError {
  /**
   * At most 2000 characters.
   */
  message: string;
  /**
   * `snake_case`.
   */
  code: string;
}

/** The name of an event. */
export type EventType = keyof EventData;
