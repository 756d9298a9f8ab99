// Authenticated requests: the token goes into the header, never into a URL or an error; a refused one is renewed once.

import { AgentSSEError, asError, refusal } from "./errors.js";

const PATIENCE = 30_000; // ms that an answer, or a new token, may take

/** What a request says beside its path. */
export interface Init {
  method?: string;
  body?: unknown;
  headers?: Record<string, string>;
  signal?: AbortSignal;
  /** How long the answer may take, milliseconds; Infinity for who watches over it otherwise. */
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
  /** Return the response, of whichever status. Throws AgentSSEError `network`. */
  send(path: string, init?: Init): Promise<Response>;
  /** Return the body of a success. Throws AgentSSEError for everything else. */
  call(path: string, init?: Init): Promise<Response>;
}

/** Return what makes requests below `base` with `token`, or with those that `provider` gives. */
export function makeHttp(base: string, token: string, provider?: () => Promise<string>): Http {
  let renewing: Promise<string> | undefined;

  const late = () =>
    new Promise<never>((_, reject) => {
      setTimeout(() => reject(new AgentSSEError("network", "the tokenProvider gave no token in time")), PATIENCE);
    });

  const renew = async (give: () => Promise<string>): Promise<string> => {
    renewing ??= Promise.race([give(), late()]).finally(() => {
      renewing = undefined;
    });
    token = await renewing;
    return token;
  };

  const http: Http = {
    base,
    token: async () => token || (provider ? renew(provider) : ""),
    expire() {
      token = provider ? "" : token;
      return !token;
    },
    async send(path, { method = "GET", body, headers, signal, patience = PATIENCE } = {}) {
      const signals = signal ? [signal] : [];
      if (patience < Infinity) signals.push(AbortSignal.timeout(patience));
      for (let last = !provider; ; last = true) {
        const used = await http.token();
        const response = await fetch(base + path, {
          method,
          cache: "no-store",
          signal: AbortSignal.any(signals),
          headers: {
            ...headers,
            Authorization: `Bearer ${used}`,
            ...(body !== undefined && { "Content-Type": "application/json" }),
          },
          ...(body !== undefined && { body: JSON.stringify(body) }),
        }).catch((error) => {
          throw signal?.aborted ? signal.reason : asError(error);
        });
        if (response.status !== 401 || last) return response;
        if (used === token) http.expire();
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
