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
import { type Http, makeHttp } from "./http.js";
import { type Inbox, makeInbox } from "./inbox.js";
import type { Answer, AnswerResult, ClientEvents, ClientOptions, ConnectionState, ReceivedEvent } from "./types.js";

const BACKLOG = 10_000; // events that an iterator holds for its reader
const REMEMBERED = 100; // answers

// biome-ignore lint/suspicious/noExplicitAny: one map for listeners of every kind
type Listener = (...values: any[]) => void;

const CALLBACKS = {
  tool_status: "onToolStatusChange",
  permission_request: "onPermissionRequest",
  tool_result: "onToolResult",
  permission_cleared: "onPermissionCleared",
  result_cleared: "onResultCleared",
  permission_response_result: "onPermissionResponseResult",
  heartbeat: "onHeartbeat",
  error: "onError",
} as const;

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

  #http: Http;
  #inbox: Inbox;
  #session: string;
  #options: ClientOptions;
  #listeners = new Map<string, Set<Listener>>();
  #run: AbortController | undefined;
  #answers = new Map<string, Promise<boolean>>();
  #state: ConnectionState = { phase: "idle", via: null, attempt: 0, retryAt: null, lastByteAt: null, error: null };

  /**
   * @param sessionId `^[A-Za-z0-9_][A-Za-z0-9._:-]{0,127}$`
   * @param token a JWT; may be empty where `options.tokenProvider` gives them
   */
  constructor(sessionId: string, token: string, options: ClientOptions = {}) {
    const { baseUrl = "/agent_backend/api/sse", tokenProvider, lastEventId = null } = options;
    this.#session = encodeURIComponent(sessionId);
    this.#options = options;
    this.#http = makeHttp(baseUrl, token, tokenProvider);
    this.#inbox = makeInbox(lastEventId, (event) => this.#deliver(event));
  }

  /** Where the connection stands; a new object whenever it changes. */
  get state(): ConnectionState {
    return this.#state;
  }

  /** The id of the last event, `"<ms>-<seq>"`: where the next connection goes on. */
  get lastEventId(): string | null {
    return this.#inbox.cursor;
  }

  /** Connect, anew if it is connected. */
  connect(): void {
    this.#run?.abort();
    const run = new AbortController();
    this.#run = run;
    const link: Link = {
      http: this.#http,
      session: this.#session,
      options: this.#options,
      inbox: this.#inbox,
      beat: this.#options.heartbeatInterval ?? 15_000,
      wake() {},
      set: (change) => {
        if (!run.signal.aborted) this.#set(change);
      },
    };
    this.#set({ phase: "connecting", via: null, attempt: 0, retryAt: null, error: null });
    keepConnected(link, run.signal).catch((error) => {
      if (run.signal.aborted) return;
      run.abort();
      this.#end(asError(error));
    });
  }

  /** Close the connection. `connect()` goes on after `lastEventId`. */
  disconnect(): void {
    if (this.#state.phase === "idle") return;
    this.#run?.abort();
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
    this.#emit("state", this.#state);
    if (change.phase === "open" && before.phase !== "open") this.#call("onConnectionOpen", new Event("open"));
  }

  #deliver(event: ReceivedEvent) {
    const { type, data } = event;
    const callback = CALLBACKS[type as keyof typeof CALLBACKS];
    const { timestamp, message } = data as { timestamp?: unknown; message?: unknown };
    if (callback) this.#call(callback, type === "heartbeat" ? timestamp : type === "error" ? message : data);
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
    let waiting: (() => void)[] = [];
    const wake = () => {
      for (const resolve of waiting) resolve();
      waiting = [];
    };
    const stop = (why: AgentSSEError | null) => {
      over = true;
      error = why;
      for (const off of offs) off();
      wake();
    };
    const offs = [
      this.on("event", (event) => {
        if (queue.push(event) > BACKLOG) stop(new AgentSSEError("lagged", "the reader of the events is too slow"));
        else wake();
      }),
      this.on("end", stop),
    ];
    if (this.#state.phase === "idle") this.connect();
    if (this.#state.phase === "ended") stop(this.#state.error);
    return {
      next: async () => {
        while (!queue.length && !over) await new Promise<void>((resolve) => waiting.push(resolve));
        const value = queue.shift();
        if (value) return { value, done: false };
        const why = error;
        error = null;
        if (why) throw why;
        return { value: undefined, done: true };
      },
      return: async () => {
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
    const { open, shown } = this.#inbox;
    const id = requestId ?? [...open][0] ?? shown;
    const key = `${approved} ${id}`;
    const sent = this.#answers.get(key);
    if (sent) return sent;
    const answer = this.#http
      .send(`/permission-response/${this.#session}`, { method: "POST", body: { approved, reason, request_id: id } })
      .then((response) => response.json())
      .then((body) => body.success === true)
      .catch(() => false);
    this.#answers.set(key, answer);
    if (this.#answers.size > REMEMBERED) this.#answers.delete(this.#answers.keys().next().value as string);
    answer.then((success) => {
      if (!success || !id) this.#answers.delete(key);
    });
    return answer;
  }

  /** Answer a request in any way the service knows. Throws AgentSSEError; a conflict's `data` is the decision that won. */
  answer(requestId: string, { parametersPatch, ...answer }: Answer): Promise<AnswerResult> {
    return this.request(`/permission-response/${this.#session}`, {
      method: "POST",
      body: { ...answer, request_id: requestId, parameters_patch: parametersPatch },
    });
  }

  /** Cancel a tool call; `status` is `withdrawn` or `cancelling`. Throws AgentSSEError. */
  cancelCall(toolCallId: string, reason?: string): Promise<{ tool_call_id: string; status: string }> {
    return this.request(`/cancel/${this.#session}`, { method: "POST", body: { tool_call_id: toolCallId, reason } });
  }

  /** Look at the session: the service's JSON, or null when there was none. */
  // biome-ignore lint/suspicious/noExplicitAny: the guide's signature
  async checkHealth(): Promise<any> {
    return this.#http
      .send(`/health/${this.#session}`)
      .then((response) => response.json())
      .catch(() => null);
  }

  /** Make an authenticated call below `baseUrl`; returns the body's `data`. Throws AgentSSEError. */
  async request<T>(path: string, init?: { method?: string; body?: unknown; signal?: AbortSignal }): Promise<T> {
    const response = await this.#http.call(path, init);
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
