// The guide's component with the package's class: only its import differs.
import MCPToolMonitor from "./package/MCPToolMonitor";
import { mount } from "./mount";

mount(MCPToolMonitor);
