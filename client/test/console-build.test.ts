// The console's files in the Python package are what its sources build; see scripts/console-check.mjs.

import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";

test("the committed console is what its sources build, byte for byte", { timeout: 120_000 }, () => {
  const script = fileURLToPath(new URL("../scripts/console-check.mjs", import.meta.url));
  const said = execFileSync(process.execPath, [script], { encoding: "utf8" });
  expect(said).toContain("(console.css, console.js, index.html)");
});
