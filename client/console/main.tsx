// Starts the console in the page. The service's prefix is what the page says; the server puts it there.

import { createRoot } from "react-dom/client";
import "../src/react/styles.css";
import "./console.css";
import { App } from "./app.js";

const prefix = document.querySelector<HTMLMetaElement>('meta[name="agent-sse-prefix"]')?.content ?? "";
const root = document.getElementById("console");
if (root) createRoot(root).render(<App baseUrl={prefix} />);
