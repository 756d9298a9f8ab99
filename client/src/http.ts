// Authenticated requests: the token goes into the header, never into a URL or an error; a refused one is renewed once.

import { asError, refusal } from "./errors.js";

const PATIENCE = 30_000; // ms that an answer, or a new token, may take

/** What a request says beside its path. */
export interface Init {
  /** Default: POST with a body, else GET. */
  method?: string;
  body?: unknown;
  headers?: Record<string, string>;
  signal?: AbortSignal;
  /** How long it may take to its end, milliseconds. */
  patience?: number;
}

/** Requests with one client's token. */
export interface Http {
  /** The service's address, up to and with its prefix. */
  readonly base: string;
  /** Return the token, asking for one if there is none. */
  token(): Promise<string>;
  /** Forget the token; false when nobody gives another one. */
  expire(): boolean;
  /** Return the response, of whichever status. Throws AgentSSEError `network`, or the reason of `init.signal`. */
  send(path: string, init?: Init): Promise<Response>;
  /** Return the response of a success. Throws AgentSSEError for every other one. */
  call(path: string, init?: Init): Promise<Response>;
}

/** Return what makes requests below `base` with `token`, or with those that `provider` gives. */
export function makeHttp(base: string, token: string, provider?: () => Promise<string>): Http {
  let renewing: Promise<string> | undefined;

  const renew = async (): Promise<string> => {
    renewing ??= new Promise<string>((resolve, reject) => {
      setTimeout(() => reject(asError("no token came")), PATIENCE);
      provider?.().then(resolve, reject);
    }).finally(() => {
      renewing = undefined;
    });
    token = await renewing;
    return token;
  };

  const http: Http = {
    base,
    token: async () => token || (provider ? renew() : ""),
    expire() {
      if (provider) token = "";
      return !!provider;
    },
    async send(path, { method, body, headers, signal, patience = PATIENCE } = {}) {
      for (let last = !provider; ; last = true) {
        const used = await http.token();
        const response = await fetch(base + path, {
          method: method ?? (body ? "POST" : "GET"),
          cache: "no-store",
          signal: AbortSignal.any([AbortSignal.timeout(patience), ...(signal ? [signal] : [])]),
          headers: { ...headers, Authorization: `Bearer ${used}`, "Content-Type": "application/json" },
          body: body ? JSON.stringify(body) : null,
        }).catch((error) => {
          throw signal?.aborted ? signal.reason : asError(error);
        });
        if (response.status !== 401 || last) return response;
        if (used === token) token = "";
      }
    },
    async call(path, init) {
      const response = await http.send(path, init);
      if (!response.ok) throw await refusal(response);
      return response;
    },
  };
  return http;
}

/** Return what a token says of itself; nothing for what cannot be read. Decides nothing about rights. */
export function claimsOf(token: string): { sub?: string; exp?: number } {
  try {
    return JSON.parse(atob(token.split(".")[1]?.replace(/-/g, "+").replace(/_/g, "/") ?? ""));
  } catch {
    return {};
  }
}
