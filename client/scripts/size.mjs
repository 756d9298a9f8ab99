// Fails when the built core is too large: what `import "agent-sse"` loads (dist/index.js with its static imports), and
// that together with what it loads only where it is used. Run the build first.

import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

const BOUNDS = { core: 4096, "core with what it loads when used": 5632 }; // bytes with gzip, below them
const dist = join(dirname(fileURLToPath(import.meta.url)), "..", "dist");

/** Return the files that `name` imports, itself first. */
function graph(name, pattern, found = new Set()) {
  if (found.has(name)) return found;
  found.add(name);
  for (const [, , next] of code(name).matchAll(pattern)) graph(next, pattern, found);
  return found;
}

function code(name) {
  return readFileSync(join(dist, name), "utf8").replace(/^\/\/# sourceMappingURL=.*$/m, "");
}

const STATIC = /\b(from|import)\s*["'`]\.\/([^"'`]+)["'`]/g;
const EVERY = /\b(from|import)\s*\(?\s*["'`]\.\/([^"'`]+)["'`]/g;
const sizes = { core: graph("index.js", STATIC), "core with what it loads when used": graph("index.js", EVERY) };

for (const [what, names] of Object.entries(sizes)) {
  const size = gzipSync([...names].map(code).join("\n"), { level: 9 }).length;
  console.log(`${what} (${[...names].join(", ")}): ${size} bytes with gzip, bound ${BOUNDS[what]}`);
  if (size >= BOUNDS[what]) {
    console.error(`that is ${size - BOUNDS[what] + 1} bytes too many`);
    process.exitCode = 1;
  }
}
