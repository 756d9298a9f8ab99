// A proxy in front of the service that holds streams back, as some networks do, until it is told to let them through.

import { createServer, type IncomingMessage, request, type Server } from "node:http";
import type { AddressInfo } from "node:net";

/** Forwards to 127.0.0.1:`port`; while `buffering`, what a stream says stays here. */
export class HoldingProxy {
  buffering = true;
  /** The streams that are open now. */
  readonly #streams = new Set<IncomingMessage>();
  /** Paths that were asked for, with their queries. */
  readonly asked: string[] = [];
  readonly #server: Server;

  constructor(port: number) {
    this.#server = createServer((incoming, answer) => {
      const path = incoming.url ?? "/";
      this.asked.push(path);
      const held = this.buffering && path.includes("/events/");
      const { method, headers } = incoming;
      const onward = request({ host: "127.0.0.1", port, path, method, headers }, (response) => {
        if (held) return response.resume(); // nothing comes out, not even the head
        answer.writeHead(response.statusCode ?? 502, response.headers);
        answer.flushHeaders();
        if (path.includes("/events/")) this.#streams.add(response);
        return response.pipe(answer);
      });
      onward.on("error", () => answer.destroy());
      answer.on("close", () => onward.destroy());
      incoming.pipe(onward);
    });
  }

  /** Listen, and return the port. */
  async listen(): Promise<number> {
    await new Promise<void>((resolve) => this.#server.listen(0, "127.0.0.1", resolve));
    return (this.#server.address() as AddressInfo).port;
  }

  /** Let the streams that are open now say nothing more, without ending them. */
  stall(): void {
    for (const stream of this.#streams) stream.unpipe().resume();
    this.#streams.clear();
  }

  /** Cut what is open and stop listening. */
  async close(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}
