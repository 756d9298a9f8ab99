import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

// The client asks its own origin, as the guide's does: vite hands on to the service what is below its prefix.
const service = process.env.AGENT_SSE_URL ?? "http://127.0.0.1:8000";

export default defineConfig({
  base: "./",
  plugins: [react()],
  resolve: { dedupe: ["react", "react-dom"] }, // `file:../../client` brings a React of its own, for its tests
  server: { proxy: { "/agent_backend": { target: service, changeOrigin: true } } },
});
