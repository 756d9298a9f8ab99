// The package's component in the place of the guide's: `<MCPToolMonitor sessionId token />` and nothing else.
import MCPToolMonitor from "agent-sse/react";
import "agent-sse/react/styles.css";
import { mount } from "./mount";

mount(MCPToolMonitor);
