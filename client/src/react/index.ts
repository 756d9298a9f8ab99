// The package's `/react`: the component, its parts and the hooks.

export { ConnectionBadge, type ConnectionBadgeProps, RiskBadge, StatusBadge } from "./badge.js";
export { ToolCallCard, type ToolCallCardProps } from "./call-card.js";
export {
  type AgentSession,
  type PermissionRequests,
  useAgentSession,
  usePermissionRequests,
  useToolEvents,
} from "./hooks.js";
export { type Language, type Messages, messages } from "./messages.js";
export { type Decision, MCPToolMonitor, MCPToolMonitor as default, type MCPToolMonitorProps } from "./monitor.js";
export { PermissionCard, type PermissionCardProps } from "./permission-card.js";
export { AlreadySending } from "./store.js";
