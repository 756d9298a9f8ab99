// The real service for the tests in Node: `agent-sse serve` with an embedded Valkey of its own.

import { type ChildProcess, execFile, spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

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

  async #run(...words: string[]): Promise<string> {
    const { stdout } = await promisify(execFile)(COMMAND, words, { env: this.#environment });
    return stdout.trim();
  }

  /** Return a token; the scopes of users by default. */
  token(session: string, { sub = "alice", scope = "", ttl = 3600 } = {}): Promise<string> {
    const rest = scope ? ["--scope", scope] : [];
    return this.#run("token", "--sub", sub, "--session", session, "--ttl", `${ttl}`, ...rest);
  }

  /** Return what makes an agent's requests for `session`. */
  async agent(session: string): Promise<(path: string, body?: unknown, method?: string) => Promise<Response>> {
    const token = await this.token(session, { sub: "agent", scope: "events:publish" });
    return (path, body, method = "POST") =>
      fetch(this.base + path, {
        method,
        headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json" },
        ...(body !== undefined && { body: JSON.stringify(body) }),
      });
  }
}
