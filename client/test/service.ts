// The real service for the tests in Node: `agent-sse serve` with an embedded Valkey of its own.

import { type ChildProcess, spawn } from "node:child_process";
import { createHmac } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const COMMAND = join(dirname(fileURLToPath(import.meta.url)), "../../.venv/bin/agent-sse");
export const PREFIX = "/agent_backend/api/sse";
const SECRET = "a-secret-for-tests-of-at-least-32-bytes";

/** A running service; `restart` keeps its port and its history. */
export class Service {
  port = 0;
  #process: ChildProcess | undefined;
  readonly #folder = mkdtempSync(join(tmpdir(), "agent-sse-client-"));
  readonly #environment: NodeJS.ProcessEnv;

  constructor(settings: Record<string, string> = {}) {
    this.#environment = {
      ...process.env,
      AGENT_SSE_STATE_DIR: this.#folder,
      AGENT_SSE_JWT_SECRET: SECRET,
      AGENT_SSE_JWT_AUDIENCE: "tests",
      AGENT_SSE_HEARTBEAT_INTERVAL: "1",
      ...settings,
    };
  }

  get base(): string {
    return `http://127.0.0.1:${this.port}${PREFIX}`;
  }

  /** Start, and wait until it listens. */
  async start(): Promise<this> {
    const child = spawn(COMMAND, ["serve", "--port", `${this.port}`], {
      env: this.#environment,
      stdio: ["ignore", "ignore", "pipe"],
    });
    this.#process = child;
    await new Promise<void>((resolve, reject) => {
      let log = "";
      child.stderr?.on("data", (chunk: Buffer) => {
        log += chunk;
        const found = /running on http:\/\/127\.0\.0\.1:(\d+)/.exec(log);
        if (found) {
          this.port = Number(found[1]);
          log = "";
          resolve();
        }
      });
      child.once("exit", (code) => reject(new Error(`the service ended with ${code}: ${log}`)));
    });
    return this;
  }

  /** End the service's process; its history stays. */
  async stop(signal: NodeJS.Signals = "SIGTERM"): Promise<void> {
    const child = this.#process;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const gone = new Promise((resolve) => child.once("exit", resolve));
    child.kill(signal);
    await gone;
  }

  async restart(): Promise<void> {
    await this.stop();
    await this.start();
  }

  /** End it and remove what it kept. */
  async close(): Promise<void> {
    await this.stop();
    rmSync(this.#folder, { recursive: true, force: true });
  }

  /** Return a token; the scopes of users by default, `ttl` in seconds. */
  token(session: string, { sub = "alice", scope = "", ttl = 3600 } = {}): string {
    const now = Math.floor(Date.now() / 1000);
    const claims = { sub, aud: "tests", sessions: [session], iat: now, exp: now + ttl, ...(scope && { scope }) };
    const content = [{ alg: "HS256", typ: "JWT" }, claims]
      .map((part) => Buffer.from(JSON.stringify(part)).toString("base64url"))
      .join(".");
    return `${content}.${createHmac("sha256", SECRET).update(content).digest("base64url")}`;
  }

  /** Return what makes an agent's requests for `session`. */
  agent(session: string): (path: string, body?: unknown, method?: string) => Promise<Response> {
    const token = this.token(session, { sub: "agent", scope: "events:publish" });
    return (path, body, method = "POST") =>
      fetch(this.base + path, {
        method,
        headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json" },
        ...(body !== undefined && { body: JSON.stringify(body) }),
      });
  }
}
