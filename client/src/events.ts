// Placeholder until it is generated from the Python models; the names stay.
export type RiskLevel = "low" | "medium" | "high" | "critical";
export type Status = "pending" | "waiting_permission" | "executing" | "completed" | "failed" | "cancelled" | "denied";
export interface Progress { progress: number; total?: number | null; message?: string | null }
export interface ToolStatusDetails {
  parameters: unknown; risk_level: RiskLevel; start_time: string; progress?: Progress; parent_tool_call_id?: string;
  server?: string; cancellable?: boolean; original_parameters?: unknown; [key: string]: unknown;
}
export interface ToolStatus { status: Status; tool_name: string; tool_call_id: string; timestamp: string; details: ToolStatusDetails }
export interface PermissionRequest {
  tool_name: string; parameters: unknown; risk_level: RiskLevel; timestamp: string; status: "pending"; request_id: string;
  tool_call_id: string; expires_at: string; editable: boolean; scopes: ("once" | "session")[]; server?: string;
  masked?: string[]; truncated?: boolean; digest?: string; message?: string;
}
export interface PermissionResponseResult {
  success: boolean; request_id: string; approved: boolean; reason: string | null; timestamp: string; scope?: string;
  covers?: string; grant_id?: string; parameters_patch?: unknown; edited_parameters?: unknown;
}
export interface PermissionCleared {
  request_id: string | null; tool_call_id: string | null; tool_name: string | null;
  outcome: "approved" | "denied" | "expired" | "cancelled" | "none"; reason: string | null; resolved_by: string | null;
  timestamp: string; scope?: string; covers?: string; grant_id?: string; parameters_patch?: unknown; edited_parameters?: unknown;
}
export interface ToolResult {
  tool_name: string; result: unknown; success: boolean; timestamp: string; tool_call_id: string; error?: string; duration_ms?: number;
}
export interface ResultCleared { tool_call_id: string | null; timestamp: string }
export interface StreamReset { reason: "history_expired" | "invalid_cursor" | "history_lost"; last_event_id: string | null; timestamp: string }
export interface Heartbeat { timestamp: number }
export interface ServiceError { message: string; code: string }
export interface EventData {
  tool_status: ToolStatus; permission_request: PermissionRequest; permission_response_result: PermissionResponseResult;
  permission_cleared: PermissionCleared; tool_result: ToolResult; result_cleared: ResultCleared; stream_reset: StreamReset;
  heartbeat: Heartbeat; error: ServiceError;
}
export type EventType = keyof EventData;
