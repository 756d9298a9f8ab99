// An agent in JavaScript, without a dependency: Node 20 or later, or any other runtime with `fetch`.
//   AGENT_SSE_URL=http://127.0.0.1:8000 AGENT_SSE_TOKEN=… node agent.mjs SESSION FILE TEXT
// The token has the scope events:publish and lists the session. Writes TEXT to FILE when a user says so, who may edit both.
import { randomUUID } from "node:crypto";
import { writeFile } from "node:fs/promises";

const { AGENT_SSE_URL, AGENT_SSE_TOKEN, AGENT_SSE_PREFIX = "/agent_backend/api/sse" } = process.env;
const [session, file, text] = process.argv.slice(2);
if (!AGENT_SSE_URL || !AGENT_SSE_TOKEN || text === undefined) {
  console.error("usage: AGENT_SSE_URL=… AGENT_SSE_TOKEN=… node agent.mjs SESSION FILE TEXT");
  process.exit(64);
}

async function call(method, path, { body, key } = {}) {
  const headers = { Authorization: `Bearer ${AGENT_SSE_TOKEN}`, "Content-Type": "application/json" };
  if (key) headers["Idempotency-Key"] = key;
  const response = await fetch(`${AGENT_SSE_URL}${AGENT_SSE_PREFIX}/${path}`, {
    method, headers, body: body && JSON.stringify(body), signal: AbortSignal.timeout(90_000),
  });
  const reply = await response.json();
  if (!reply.success) throw new Error(`${response.status} ${reply.error.code}: ${reply.message}`, { cause: response });
  return { status: response.status, data: reply.data };
}

// Sent again with the same key, an event is stored once.
async function publish(event, key = randomUUID()) {
  for (let attempt = 1; ; attempt++) {
    try {
      return await call("POST", `publish/${session}`, { body: event, key });
    } catch (error) {
      if (attempt === 3 || (error.cause?.status ?? 500) < 500) throw error; // what is refused now is refused again
      await new Promise((resolve) => setTimeout(resolve, 1000 * attempt));
    }
  }
}

// Asks until there is a decision. Anything but `approved === true` means: do not run.
async function ask(question) {
  let { status, data } = await call("POST", `permission-request/${session}?wait=30`, { body: question });
  while (status === 202) {
    ({ status, data } = await call("GET", `permission-request/${session}/${data.request_id}?wait=30`));
  }
  return data;
}

// JSON Merge Patch, RFC 7396: for the real parameters, of which the user may have seen some masked.
function merge(target, patch) {
  if (patch === null || typeof patch !== "object" || Array.isArray(patch)) return patch;
  const isObject = target !== null && typeof target === "object" && !Array.isArray(target);
  const entries = new Map(isObject ? Object.entries(target) : []);
  for (const [name, value] of Object.entries(patch)) {
    if (value === null) entries.delete(name);
    else entries.set(name, merge(entries.get(name), value));
  }
  return Object.fromEntries(entries);
}

const toolCall = { tool_name: "file_write", tool_call_id: `call_${randomUUID()}` };
let parameters = { file, text };
const status = (state) =>
  publish({ type: "tool_status", data: { ...toolCall, status: state, details: { parameters, risk_level: "medium" } } });
const result = (data) => publish({ type: "tool_result", data: { ...toolCall, ...data } });

async function run() {
  await status("waiting_permission");
  const schema = {
    type: "object", additionalProperties: false, required: ["file", "text"],
    properties: { file: { type: "string" }, text: { type: "string" } },
  };
  const question = { ...toolCall, parameters, risk_level: "medium", timeout: 300, editable: true, schema };
  const decision = await ask(question);
  if (decision.approved !== true) {
    await status(decision.outcome === "denied" ? "denied" : "cancelled");
    await result({ success: false, error: `permission ${decision.outcome}: ${decision.reason ?? ""}` });
    return 1;
  }
  if (decision.parameters_patch) parameters = merge(parameters, decision.parameters_patch);
  await status("executing");
  await writeFile(parameters.file, parameters.text);
  await status("completed");
  await result({ success: true, result: { file: parameters.file, characters: parameters.text.length } });
  return 0;
}

try {
  process.exitCode = await run();
} catch (error) {
  console.error(`agent.mjs: ${error.message}`);
  await status("failed").catch(() => {});
  await result({ success: false, error: error.message }).catch(() => {});
  process.exitCode = 1;
}
