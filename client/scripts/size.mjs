// Fails when the core is larger than its bound: dist/index.js with what it imports, minified and compressed.
// It looks at the built files, so run the build first.

import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "vite";

const BOUND = 4096; // bytes, below it
const entry = join(dirname(fileURLToPath(import.meta.url)), "..", "dist", "index.js");

readFileSync(entry); // a clear error where there is none
const { output } = await build({
  configFile: false,
  logLevel: "error",
  build: {
    write: false,
    minify: true,
    target: "es2022",
    rollupOptions: { input: entry, preserveEntrySignatures: "strict" },
  },
});
const code = output.map((chunk) => chunk.code ?? "").join("");
const size = gzipSync(code, { level: 9 }).length;
console.log(`core: ${code.length} bytes minified, ${size} bytes with gzip (below ${BOUND})`);
if (size >= BOUND) {
  console.error(`the core is ${size - BOUND + 1} bytes too large`);
  process.exit(1);
}
