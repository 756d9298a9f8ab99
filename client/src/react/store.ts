// One client and one view per session and subject, shared by every component that shows it and counted by reference.
// It never makes a component render more than once in 16 ms, however many events come.

import { AgentSSEError, SSEClient } from "../index.js";
import { dismissError, emptySession, reduceSession, settleRequest } from "../session.js";
import { isObject } from "../text.js";
import type { Answer, AnswerResult, ClientOptions, ConnectionState, ReceivedEvent } from "../types.js";
import type { Outcome, SessionView } from "../view.js";

/** What the components see of a session at one moment. */
export interface Shared {
  readonly session: SessionView;
  readonly connection: ConnectionState;
  /** Ids of the requests whose answer is on its way. */
  readonly pending: ReadonlySet<string>;
}

const RENDER_INTERVAL = 16; // milliseconds
const LINGER = 1_000; // a component that is taken out and put back at once keeps its connection
const UNUSED = 10_000; // made by a render that React threw away

const IDLE: ConnectionState = {
  phase: "idle",
  via: null,
  attempt: 0,
  retryAt: null,
  lastByteAt: null,
  error: null,
};

/** Before the first event, and on a server. */
export const NOTHING: Shared = { session: emptySession(), connection: IDLE, pending: new Set() };

const stores = new Map<string, SessionStore>();

/** The session's store: the one that others use already, or a new one, which connects with its first subscriber. */
export function sessionStore(sessionId: string, token: string, options: ClientOptions): SessionStore {
  const key = JSON.stringify([options.baseUrl ?? null, sessionId, subjectOf(token)]);
  let store = stores.get(key);
  if (store === undefined) {
    store = new SessionStore(key, sessionId, token, options);
    stores.set(key, store);
    store.release(UNUSED);
  }
  return store;
}

/** Whose token it is, not verified: a renewed token of the same user goes on with the same view. */
export function subjectOf(token: string): string {
  try {
    const part = (token.split(".")[1] ?? "").replaceAll("-", "+").replaceAll("_", "/");
    const bytes = Uint8Array.from(atob(part), (char) => char.charCodeAt(0));
    const claims: unknown = JSON.parse(new TextDecoder().decode(bytes));
    if (isObject(claims) && typeof claims.sub === "string") return `sub:${claims.sub}`;
  } catch (error) {
    if (!(error instanceof SyntaxError || error instanceof DOMException)) throw error;
  }
  return `token:${token}`;
}

/** See the module's head. Made by {@link sessionStore} only. */
export class SessionStore {
  readonly client: SSEClient;
  readonly #key: string;
  #token: string;
  #provider: ClientOptions["tokenProvider"];
  #shared: Shared = NOTHING;
  #listeners = new Set<() => void>();
  #flush: ReturnType<typeof setTimeout> | undefined;
  #disposal: ReturnType<typeof setTimeout> | undefined;
  #anew = false; // what comes first is no gap in what is shown, which is nothing

  constructor(key: string, sessionId: string, token: string, options: ClientOptions) {
    this.#key = key;
    this.#token = token;
    this.#provider = options.tokenProvider;
    // The client asks here, so that a renewed token serves it without a new connection.
    const tokenProvider = () => this.#provider?.() ?? Promise.resolve(this.#token);
    this.client = new SSEClient(sessionId, token, { ...options, tokenProvider });
    this.client.on("event", (event) => this.#take(event));
    this.client.on("state", (connection) => this.#update({ connection }));
  }

  /** Follow the session; the first subscriber connects, the last one to go disconnects. */
  readonly subscribe = (listener: () => void): (() => void) => {
    clearTimeout(this.#disposal);
    this.#listeners.add(listener);
    if (!stores.has(this.#key)) stores.set(this.#key, this);
    if (this.client.state.phase === "idle") this.client.connect();
    return () => {
      this.#listeners.delete(listener);
      if (this.#listeners.size === 0) this.release(LINGER);
    };
  };

  /** The present state; the same object until something changes. */
  readonly snapshot = (): Shared => this.#shared;

  /** Disconnect after `delay` milliseconds, unless somebody subscribes before. */
  release(delay: number): void {
    clearTimeout(this.#disposal);
    this.#disposal = setTimeout(() => {
      if (this.#listeners.size > 0) return;
      this.client.disconnect();
      if (stores.get(this.#key) === this) stores.delete(this.#key);
    }, delay);
  }

  /**
   * Go on with another token of the same subject; a connection that ended for want of one begins anew. A component
   * without a `provider` leaves that of the others.
   */
  renew(token: string, provider: ClientOptions["tokenProvider"]): void {
    this.#provider = provider ?? this.#provider;
    if (token === this.#token) return;
    this.#token = token;
    const { phase, error } = this.client.state;
    if (phase === "ended" && error?.code === "unauthorized") this.client.connect();
  }

  /**
   * Answer a request; while one answer is on its way another for the same request is refused.
   *
   * @throws AgentSSEError when it was not recorded; where the request is settled or gone, its card goes too.
   */
  async answer(requestId: string, answer: Answer): Promise<AnswerResult> {
    if (this.#shared.pending.has(requestId)) throw new AlreadySending();
    this.#update({ pending: new Set(this.#shared.pending).add(requestId) });
    try {
      const result = await this.client.answer(requestId, answer);
      this.#update({ session: settleRequest(this.#shared.session, requestId) });
      return result;
    } catch (error) {
      if (error instanceof AgentSSEError) this.#refused(requestId, error);
      throw error;
    } finally {
      const pending = new Set(this.#shared.pending);
      pending.delete(requestId);
      this.#update({ pending });
    }
  }

  /** Connect at once, also after the end; of a session that was closed and may be open again, with an empty view. */
  reconnect(): void {
    if (this.#shared.session.closed) {
      this.#anew = true;
      this.#update({ session: emptySession() });
    }
    this.client.connect();
  }

  /** Put away the last error. */
  dismiss(): void {
    this.#update({ session: dismissError(this.#shared.session) });
  }

  #take(event: ReceivedEvent): void {
    const session = reduceSession(this.#shared.session, event);
    this.#update({ session: this.#anew && event.type === "stream_reset" ? dismissError(session) : session });
    if (event.type !== "heartbeat") this.#anew = false;
  }

  #refused(requestId: string, error: AgentSSEError): void {
    if (error.status !== 404 && error.status !== 409 && error.status !== 410) return;
    const { session } = this.#shared;
    const request = session.requests.find((one) => one.id === requestId);
    if (request === undefined) return;
    const outcome: Outcome = {
      requestId,
      tool: request.tool,
      outcome: "refused",
      reason: error.message,
      resolvedBy: winner(error.data),
      edited: false,
      at: null,
    };
    this.#update({ session: settleRequest(session, requestId, outcome) });
  }

  #update(change: Partial<Shared>): void {
    this.#shared = { ...this.#shared, ...change };
    this.#flush ??= setTimeout(() => {
      this.#flush = undefined;
      for (const listener of this.#listeners) listener();
    }, RENDER_INTERVAL);
  }
}

/** An answer to the same request is on its way already. */
export class AlreadySending extends Error {
  override readonly name = "AlreadySending";

  constructor() {
    super("an answer to this request is on its way: wait for what becomes of it");
  }
}

function winner(data: unknown): string | null {
  return isObject(data) && typeof data.resolved_by === "string" ? data.resolved_by : null;
}
