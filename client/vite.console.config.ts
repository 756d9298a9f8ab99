import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { defineConfig, type Plugin } from "vite";

// The console: one script and one style sheet without hashes in their names, and the page as it stands, built into the
// Python package. The same lock file gives the same bytes: no date, no absolute path and no source map is in them.
process.env.NODE_ENV = "production"; // whoever builds: a test runner says otherwise
const page = fileURLToPath(new URL("console/index.html", import.meta.url));

export default defineConfig({
  publicDir: false,
  build: {
    target: "es2022",
    outDir: "../src/agent_sse/console",
    emptyOutDir: true,
    sourcemap: false,
    modulePreload: false,
    cssCodeSplit: false,
    chunkSizeWarningLimit: 1024,
    rollupOptions: {
      input: "console/main.tsx",
      output: { entryFileNames: "console.js", assetFileNames: "console[extname]", codeSplitting: false },
    },
  },
  plugins: [pageFile(), notices()],
});

/** Adds the page beside what it loads, character for character. */
function pageFile(): Plugin {
  return {
    name: "agent-sse-page",
    generateBundle() {
      this.emitFile({ type: "asset", fileName: "index.html", source: readFileSync(page, "utf8") });
    },
  };
}

/** Puts the licences of the packages that are in the script before it; fails when one has none. */
function notices(): Plugin {
  return {
    name: "agent-sse-notices",
    generateBundle(_, bundle) {
      for (const chunk of Object.values(bundle)) {
        if (chunk.type === "chunk") chunk.code = `/*!\n${noticesOf(chunk.moduleIds)}\n*/\n${chunk.code}`;
      }
    },
  };
}

function noticesOf(moduleIds: readonly string[]): string {
  const names = new Map<string, string[]>();
  for (const folder of new Set(moduleIds.flatMap(packageFolder))) {
    const file = ["LICENSE", "LICENSE.md", "LICENSE.txt"].map((name) => `${folder}/${name}`).find(existsSync);
    if (file === undefined) throw new Error(`${folder} has no licence file: its notice cannot be kept`);
    const text = readFileSync(file, "utf8").trim().replaceAll("*/", "* /");
    names.set(text, [...(names.get(text) ?? []), folder.slice(folder.lastIndexOf("node_modules/") + 13)].sort());
  }
  const parts = [...names].map(([text, packages]) => `${packages.join(", ")}\n\n${text}`);
  return parts.sort().join("\n\n----\n\n");
}

function packageFolder(moduleId: string): string[] {
  const found = /^.*node_modules\/(?:@[^/]+\/)?[^/]+/.exec(moduleId.replaceAll("\\", "/"));
  return found ? [found[0].replace(/^\0/, "")] : [];
}
