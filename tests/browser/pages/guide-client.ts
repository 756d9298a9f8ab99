// The guide's own class, as it stands in the guide.
import { SSEClient } from "./guide/SSEClient";
import { record } from "./recorder";

Object.assign(window, { SSEClient, record });
