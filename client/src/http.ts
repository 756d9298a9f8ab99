// Authenticated requests: the token goes into the header, never into a URL or an error; a refused one is renewed once.

import { AgentSSEError, refusal } from "./errors.js";

const PATIENCE = 30_000; // ms that an answer may take

/** What a request says beside its path. */
export interface Init {
  /** Default: POST with a body, else GET. */
  method?: string;
  body?: unknown;
  headers?: Record<string, string>;
  /** Ends it; whoever gives one bounds how long it may take. Default: half a minute. */
  signal?: AbortSignal;
}

/** Requests with one client's token. What rejects has no token in its text, but may be any error: see `asError`. */
export interface Http {
  /** The service's address, up to and with its prefix. */
  readonly base: string;
  /** Return the token, asking for one if there is none. */
  token(): string | Promise<string>;
  /** Forget the token; false when nobody gives another one. */
  expire(): boolean;
  /** Return the response, of whichever status. */
  send(path: string, init?: Init): Promise<Response>;
  /** Return the response of a success. Rejects with AgentSSEError for every other one. */
  call(path: string, init?: Init): Promise<Response>;
  /** Return the `data` of a success' JSON. */
  // biome-ignore lint/suspicious/noExplicitAny: whoever asks knows its shape
  data(path: string, init?: Init): Promise<any>;
}

/** Return what makes requests below `base` with `token`, or with those that `provider` gives. */
export function makeHttp(base: string, token: string | Promise<string>, provider?: () => Promise<string>): Http {
  const http: Http = {
    base,
    token() {
      if (!token && provider) {
        token = (async () => provider())().catch((error) => {
          token = "";
          throw error;
        });
      }
      return token;
    },
    expire() {
      if (provider) token = "";
      return !!provider;
    },
    async send(path, { method, body, headers, signal = AbortSignal.timeout(PATIENCE) } = {}) {
      for (let last = !provider; ; last = true) {
        const used = http.token();
        const bearer = await used;
        if (/[^ -~]/.test(bearer)) {
          throw new AgentSSEError("unauthorized", "no header takes this token"); // `fetch` would quote it
        }
        const response = await fetch(base + path, {
          method: method ?? (body ? "POST" : "GET"),
          cache: "no-store",
          signal,
          headers: { ...headers, Authorization: `Bearer ${bearer}`, "Content-Type": "application/json" },
          body: body ? JSON.stringify(body) : null,
        });
        if (response.status !== 401 || last) return response;
        if (used === token) token = ""; // else another request has renewed it already
      }
    },
    async call(path, init) {
      const response = await http.send(path, init);
      if (!response.ok) throw await refusal(response);
      return response;
    },
    async data(path, init) {
      const response = await http.call(path, init);
      return (await response.json()).data;
    },
  };
  return http;
}
