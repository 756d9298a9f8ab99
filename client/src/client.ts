// The public client: the guide's class with typed listeners and an async iterator. What a listener does never disturbs
// the stream, and a token never leaves the Authorization header.

import { keepConnected, type Link } from "./connection.js";
import { AgentSSEError, asError } from "./errors.js";
import type {
  EventData,
  EventType,
  PermissionCleared,
  PermissionRequest,
  PermissionResponseResult,
  ResultCleared,
  ToolResult,
  ToolStatus,
} from "./events.js";
import { claimsOf, makeHttp } from "./http.js";
import { makeInbox } from "./inbox.js";
import { shareConnection } from "./tabs.js";
import type { Answer, AnswerResult, ClientEvents, ClientOptions, ConnectionState, ReceivedEvent } from "./types.js";

const BACKLOG = 10_000; // events that an iterator holds for its reader

// biome-ignore lint/suspicious/noExplicitAny: one map for listeners of every kind
type Listener = (...values: any[]) => void;

// tool_status → onToolStatus…
const callbackOf = (type: string) =>
  `on${type.replace(/(^|_)./g, (start) => start.slice(-1).toUpperCase())}${type === "tool_status" ? "Change" : ""}`;

/** One session's events, and the user's answers. */
export class SSEClient {
  /** The connection has opened, or opened again. */
  declare onConnectionOpen?: (event: Event) => void;
  declare onToolStatusChange?: (status: ToolStatus) => void;
  declare onPermissionRequest?: (request: PermissionRequest) => void;
  declare onToolResult?: (result: ToolResult) => void;
  declare onPermissionCleared?: (data: PermissionCleared) => void;
  declare onResultCleared?: (data: ResultCleared) => void;
  declare onPermissionResponseResult?: (result: PermissionResponseResult) => void;
  /** `timestamp` is in Unix seconds. */
  declare onHeartbeat?: (timestamp: number) => void;
  /** The service reported an error, or the connection ended for good by one. */
  declare onError?: (message: string) => void;
  declare onMaxReconnectAttemptsReached?: () => void;

  #link: Link;
  #listeners = new Map<string, Set<Listener>>();
  #life = new AbortController(); // from connect() to the end
  #state: ConnectionState = { phase: "idle", via: null, attempt: 0, retryAt: null, lastByteAt: null, error: null };
  #answer: { key: string; sent: Promise<boolean> } | undefined;

  /**
   * @param sessionId `^[A-Za-z0-9_][A-Za-z0-9._:-]{0,127}$`
   * @param token a JWT; may be empty where `options.tokenProvider` gives them
   */
  constructor(sessionId: string, token: string, options: ClientOptions = {}) {
    const { baseUrl = "/agent_backend/api/sse", tokenProvider, lastEventId = null } = options;
    const state = () => this.#state;
    const link: Link = {
      http: makeHttp(baseUrl, token, tokenProvider),
      session: encodeURIComponent(sessionId),
      options,
      inbox: makeInbox(lastEventId, (event, previous) => {
        link.relay?.(event, previous);
        this.#deliver(event);
      }),
      get state() {
        return state();
      },
      beat: options.heartbeatInterval ?? 15_000,
      wake() {},
      set: (change) => this.#set(change),
    };
    this.#link = link;
  }

  /** Where the connection stands; a new object whenever it changes. */
  get state(): ConnectionState {
    return this.#state;
  }

  /** The id of the last event, `"<ms>-<seq>"`: where the next connection goes on. */
  get lastEventId(): string | null {
    return this.#link.inbox.cursor;
  }

  /** Connect, anew if it is connected. */
  connect(): void {
    this.#life.abort();
    this.#life = new AbortController();
    const { signal } = this.#life;
    let run = this.#start();
    const notice = ({ type, persisted }: Event & { persisted?: boolean }) => {
      if (type === "pagehide")
        run.abort(); // no page with a connection is kept for coming back to
      else if (type === "online" || persisted || document.visibilityState === "visible") {
        if (run.signal.aborted) run = this.#start();
        else this.#link.wake();
      }
    };
    for (const type of ["online", "visibilitychange", "pagehide", "pageshow"]) {
      globalThis.addEventListener?.(type, notice, { signal });
    }
  }

  #start(): AbortController {
    const life = this.#life;
    const run = new AbortController();
    life.signal.addEventListener("abort", () => run.abort());
    this.#set({ phase: "connecting", via: null, attempt: 0, retryAt: null, error: null });
    this.#follow(run.signal).catch((thrown) => {
      if (run.signal.aborted) return;
      const error = asError(thrown);
      run.abort();
      if (error.code !== "max_attempts") life.abort();
      this.#end(error);
    });
    return run;
  }

  async #follow(signal: AbortSignal): Promise<never> {
    const { http, session, options } = this.#link;
    const token = await http.token();
    signal.throwIfAborted();
    const { sub } = claimsOf(token);
    if (!sub || options.shareTabs === false || !globalThis.navigator?.locks) return keepConnected(this.#link, signal);
    return shareConnection(
      this.#link,
      `agent-sse ${new URL(http.base, location.href)} ${session} ${sub}`,
      signal,
      keepConnected,
    );
  }

  /** Close the connection. `connect()` goes on after `lastEventId`. */
  disconnect(): void {
    if (this.#state.phase === "idle") return;
    this.#life.abort();
    this.#set({ phase: "idle", via: null, retryAt: null });
    this.#emit("end", null);
  }

  #end(error: AgentSSEError) {
    this.#set({ phase: "ended", via: null, retryAt: null, error });
    if (error.code === "max_attempts") this.#call("onMaxReconnectAttemptsReached");
    this.#call("onError", error.message);
    this.#emit("end", error);
  }

  #set(change: Partial<ConnectionState>) {
    const before = this.#state;
    this.#state = { ...before, ...change };
    if (!Object.keys(change).some((key) => key !== "lastByteAt" && before[key as "phase"] !== change[key as "phase"]))
      return;
    this.#link.relay?.();
    this.#emit("state", this.#state);
    if (change.phase === "open" && before.phase !== "open") this.#call("onConnectionOpen", new Event("open"));
  }

  #deliver(event: ReceivedEvent) {
    const { type, data } = event;
    const { timestamp, message } = data as { timestamp?: unknown; message?: unknown };
    this.#call(callbackOf(type), type === "heartbeat" ? timestamp : type === "error" ? message : data);
    this.#emit(type, data, event);
    this.#emit("event", event);
  }

  #call(name: string, ...values: unknown[]) {
    const callback = (this as unknown as Record<string, Listener | undefined>)[name];
    if (callback) report(() => callback.apply(this, values));
  }

  #emit(type: string, ...values: unknown[]) {
    for (const listener of [...(this.#listeners.get(type) ?? [])]) report(() => listener(...values));
  }

  /** Listen to events of one type, to every `event`, to `state` or to the `end`. Returns what ends the listening. */
  on<K extends EventType>(type: K, listener: (data: EventData[K], event: ReceivedEvent<K>) => void): () => void;
  on<K extends keyof ClientEvents>(type: K, listener: (value: ClientEvents[K]) => void): () => void;
  on(type: string, listener: Listener): () => void {
    const own: Listener = (...values) => listener(...values); // the same function may listen twice
    const listeners = this.#listeners.get(type) ?? new Set();
    this.#listeners.set(type, listeners.add(own));
    return () => {
      listeners.delete(own);
    };
  }

  /**
   * Iterate over the events from now on; connects if nothing did. Ends with `disconnect()`, throws what ends the
   * connection, and AgentSSEError `lagged` when more than 10,000 events wait for the reader.
   */
  [Symbol.asyncIterator](): AsyncIterator<ReceivedEvent> {
    const queue: ReceivedEvent[] = [];
    let over = false;
    let error: AgentSSEError | null = null;
    let wake = () => {};
    let news: Promise<void>;
    const tell = () => {
      wake();
      news = new Promise((resolve) => {
        wake = resolve;
      });
    };
    const stop = (why: AgentSSEError | null) => {
      over = true;
      error = why;
      for (const off of offs) off();
      tell();
    };
    const offs = [
      this.on("event", (event) => {
        if (queue.push(event) > BACKLOG) stop(new AgentSSEError("lagged", "the events were read too slowly"));
        tell();
      }),
      this.on("end", stop),
    ];
    tell();
    if (this.#state.phase === "idle") this.connect();
    if (this.#state.phase === "ended") stop(this.#state.error);
    return {
      async next() {
        while (!queue.length && !over) await news;
        const value = queue.shift();
        if (!value && error) throw error;
        return { value, done: !value } as IteratorResult<ReceivedEvent>;
      },
      async return() {
        queue.length = 0;
        stop(null);
        return { value: undefined, done: true };
      },
    };
  }

  /**
   * Approve or deny the request shown: `requestId`, else the oldest open one. Returns whether the decision stands;
   * never throws. The same answer to the same request is sent once.
   */
  approvePermission(approved: boolean, reason = "", requestId?: string): Promise<boolean> {
    const { http, inbox, session } = this.#link;
    const id = requestId ?? [...inbox.open][0] ?? inbox.shown;
    const key = `${approved} ${id}`;
    if (this.#answer?.key === key) return this.#answer.sent;
    const sent = http
      .send(`/permission-response/${session}`, { body: { approved, reason, request_id: id } })
      .then((response) => response.json())
      .then(({ success }) => success === true)
      .catch(() => false);
    const answer = { key, sent };
    this.#answer = answer;
    sent.then((success) => {
      if (this.#answer === answer && !(success && id)) this.#answer = undefined;
    });
    return sent;
  }

  /** Answer a request in any way the service knows. Throws AgentSSEError; a conflict's `data` is the decision that won. */
  answer(requestId: string, { parametersPatch, ...answer }: Answer): Promise<AnswerResult> {
    return this.request(`/permission-response/${this.#link.session}`, {
      body: { ...answer, request_id: requestId, parameters_patch: parametersPatch },
    });
  }

  /** Cancel a tool call; `status` is `withdrawn` or `cancelling`. Throws AgentSSEError. */
  cancelCall(toolCallId: string, reason?: string): Promise<{ tool_call_id: string; status: string }> {
    return this.request(`/cancel/${this.#link.session}`, { body: { tool_call_id: toolCallId, reason } });
  }

  /** Look at the session: the service's JSON, or null when there was none. */
  // biome-ignore lint/suspicious/noExplicitAny: the guide's signature
  async checkHealth(): Promise<any> {
    return this.#link.http
      .send(`/health/${this.#link.session}`)
      .then((response) => response.json())
      .catch(() => null);
  }

  /** Make an authenticated call below `baseUrl`; returns the body's `data`. Throws AgentSSEError. */
  async request<T>(path: string, init?: { method?: string; body?: unknown; signal?: AbortSignal }): Promise<T> {
    const response = await this.#link.http.call(path, init);
    return (await response.json().catch((error: unknown) => Promise.reject(asError(error)))).data;
  }
}

// As EventTarget does it: what a listener throws is reported, and disturbs nobody.
function report(work: () => void) {
  try {
    work();
  } catch (error) {
    if ("reportError" in globalThis) reportError(error);
    else
      queueMicrotask(() => {
        throw error;
      });
  }
}
