// Builds the console into a temporary folder and compares it, byte for byte, with the files in the Python package.
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "vite";

const client = fileURLToPath(new URL("..", import.meta.url));
const committed = join(client, "..", "src", "agent_sse", "console");
const outDir = mkdtempSync(join(tmpdir(), "agent-sse-console-"));

try {
  await build({
    root: client,
    configFile: join(client, "vite.console.config.ts"),
    logLevel: "warn",
    build: { outDir, emptyOutDir: true },
  });
  const names = [...new Set([...readdirSync(outDir), ...readdirSync(committed)])].sort();
  const stale = names.filter((name) => !same(join(outDir, name), join(committed, name)));
  if (stale.length > 0) {
    console.error(`src/agent_sse/console is stale (${stale.join(", ")}): run npm run console in client/`);
    process.exitCode = 1;
  } else {
    console.log(`src/agent_sse/console is what client/console builds (${names.join(", ")})`);
  }
} finally {
  rmSync(outDir, { recursive: true, force: true });
}

function same(built, kept) {
  try {
    return readFileSync(built).equals(readFileSync(kept));
  } catch (error) {
    if (error.code === "ENOENT") return false;
    throw error;
  }
}
