import type { Plugin } from "vite";
import { defineConfig } from "vitest/config";

// The library: two entries, the core without any dependency, React left to who uses it.
export default defineConfig({
  build: {
    target: "es2022",
    emptyOutDir: true,
    sourcemap: true,
    minify: true,
    lib: {
      entry: { index: "src/index.ts", react: "src/react/styled.ts" },
      formats: ["es"],
      cssFileName: "react",
    },
    rollupOptions: {
      external: ["react", "react-dom", "react/jsx-runtime"],
      preserveEntrySignatures: "allow-extension", // the chunk that shares tabs imports from the core
      output: { chunkFileNames: "[name].js", minify: true, comments: { annotation: false } }, // nobody drops parts of it
    },
  },
  plugins: [styleTypes()],
  test: { include: ["test/**/*.test.ts"], testTimeout: 30_000, hookTimeout: 30_000 },
});

/** Adds the declaration for `import "agent-sse/react/styles.css"`: strict projects take no module without one. */
function styleTypes(): Plugin {
  return {
    name: "agent-sse-style-types",
    generateBundle() {
      this.emitFile({ type: "asset", fileName: "react/styles.css.d.ts", source: "export {};\n" });
    },
  };
}
