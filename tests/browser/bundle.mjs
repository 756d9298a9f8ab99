// Builds the tests' pages with the client package's own vite: `node bundle.mjs ROOT OUT ENTRY...`. ROOT holds the pages
// (each an HTML file); "agent-sse" and React come from the package's sources and its node_modules, never from elsewhere.
import { createRequire } from "node:module";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const client = resolve(dirname(fileURLToPath(import.meta.url)), "../../client");
const require = createRequire(join(client, "package.json"));
const { build } = await import(pathToFileURL(require.resolve("vite")).href);

const [root, outDir, ...entries] = process.argv.slice(2);
const modules = join(client, "node_modules");
await build({
  root,
  base: "./",
  configFile: false,
  logLevel: "warn",
  resolve: {
    alias: [
      { find: /^agent-sse$/, replacement: join(client, "src/index.ts") },
      { find: /^agent-sse\/react$/, replacement: join(client, "src/react/index.ts") },
      { find: /^agent-sse\/react\/styles\.css$/, replacement: join(client, "src/react/styles.css") },
      { find: /^agent-sse\/src\//, replacement: `${join(client, "src")}/` },
      { find: /^(react|react-dom)(?=\/|$)/, replacement: join(modules, "$1") },
    ],
  },
  oxc: { jsx: { runtime: "automatic", development: false } },
  build: {
    outDir,
    emptyOutDir: true,
    target: "es2022",
    minify: false,
    modulePreload: { polyfill: false },
    rolldownOptions: { input: entries.map((name) => join(root, name)) },
  },
});
