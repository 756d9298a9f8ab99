// The guide's component with the guide's class.
import MCPToolMonitor from "./guide/MCPToolMonitor";
import { mount } from "./mount";

mount(MCPToolMonitor);
