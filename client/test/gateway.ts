// What stands before a service, or in its place, and does as a test says: ingress pages, odd bytes, held answers.

import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { SSEClient } from "../src/index.js";
import type { ClientOptions } from "../src/types.js";

/** Answers the `count`-th request of its kind, from 1 on: `events`, `poll`, `permission-response`… */
export type Answering = (request: IncomingMessage, response: ServerResponse, count: number) => unknown;

export const HEARTBEAT = 'data: {"type":"heartbeat","timestamp":1}\n\n';

/** An event's frame. */
export const frame = (id: string, event: unknown) => `id: ${id}\ndata: ${JSON.stringify(event)}\n\n`;

/** Begin a stream, and say `text` in it. */
export function stream(response: ServerResponse, text = HEARTBEAT, headers = {}): void {
  response.writeHead(200, { "Content-Type": "text/event-stream", ...headers });
  response.write(text);
}

/** Answer with JSON. */
export const json = (response: ServerResponse, status: number, body: unknown) =>
  response.writeHead(status, { "Content-Type": "application/json" }).end(JSON.stringify(body));

/** A server on 127.0.0.1 that answers by `answering`, by the second part of the path; what has none is not answered. */
export class Gateway {
  readonly asked: { kind: string; url: string; headers: IncomingMessage["headers"]; body: string }[] = [];
  readonly #server: Server;

  constructor(answering: Record<string, Answering>) {
    this.#server = createServer(async (request, response) => {
      const kind = request.url?.split("/")[2] ?? "";
      let body = "";
      for await (const chunk of request) body += chunk;
      this.asked.push({ kind, url: request.url ?? "", headers: request.headers, body });
      answering[kind]?.(request, response, this.of(kind).length);
    });
  }

  /** The requests of one kind so far. */
  of(kind: string) {
    return this.asked.filter((one) => one.kind === kind);
  }

  /** Listen, let `work` do its part with a client of it, and close both. */
  async serve(work: (client: SSEClient) => Promise<void>, options: ClientOptions & { token?: string } = {}) {
    await new Promise<void>((resolve) => this.#server.listen(0, "127.0.0.1", resolve));
    const baseUrl = `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}/p`;
    const { token = "t", ...rest } = options;
    const client = new SSEClient("s", token, { baseUrl, reconnectDelay: 1, maxReconnectDelay: 1, ...rest });
    try {
      await work(client);
    } finally {
      client.disconnect();
      this.#server.closeAllConnections();
      await new Promise((resolve) => this.#server.close(resolve));
    }
  }
}
