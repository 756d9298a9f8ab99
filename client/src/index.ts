// What the package exports. No code lives here.

export { SSEClient } from "./client.js";
export { AgentSSEError } from "./errors.js";
export type * from "./events.js";
export type * from "./types.js";
