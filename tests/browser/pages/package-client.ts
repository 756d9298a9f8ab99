// The package's class in place of the guide's: only the import differs.
import { AgentSSEError, SSEClient } from "agent-sse";
import { record } from "./recorder";

Object.assign(window, { SSEClient, AgentSSEError, record });
