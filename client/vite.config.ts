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
      output: { chunkFileNames: "[name].js", minify: true, comments: { annotation: false } },
    },
  },
  test: { include: ["test/**/*.test.ts"], testTimeout: 30_000, hookTimeout: 30_000 },
});
