// The public client: the guide's class with typed listeners and an async iterator. What a listener does never disturbs
// the stream, and a token never leaves the Authorization header.

import { keepConnected } from "./connection.js";
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
import { makeHttp } from "./http.js";
import { makeInbox } from "./inbox.js";
import { type Link, type Scope, within } from "./link.js";
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
  #target = new EventTarget(); // it isolates listeners: what one throws is reported, and disturbs nobody
  #life = new AbortController(); // from connect() to the end
  #answer: { key: string; sent: Promise<boolean> } | undefined;

  /**
   * @param sessionId `^[A-Za-z0-9_][A-Za-z0-9._:-]{0,127}$`
   * @param token a JWT; may be empty where `options.tokenProvider` gives them
   */
  constructor(sessionId: string, token: string, options: ClientOptions = {}) {
    const {
      baseUrl = "/agent_backend/api/sse",
      tokenProvider,
      lastEventId = null,
      heartbeatInterval = 15_000,
    } = options;
    const link: Link = {
      http: makeHttp(baseUrl, token, tokenProvider),
      session: encodeURIComponent(sessionId),
      options,
      inbox: makeInbox(lastEventId, (event, previous, again) => {
        link.relay?.(event, previous);
        this.#emit("", event);
        if (again) return;
        this.#emit("event", event);
        this.#emit(event.type, event.data, event);
      }),
      state: { phase: "idle", via: null, attempt: 0, retryAt: null, lastByteAt: null, error: null },
      beat: heartbeatInterval,
      set: (change) => {
        const before = link.state;
        link.state = { ...before, ...change };
        if (shownOf(before) === shownOf(link.state)) return;
        link.relay?.();
        this.#emit("state", link.state);
        if (link.state.phase === "open" && before.phase !== "open") this.#target.dispatchEvent(new Event("open"));
      },
    };
    this.#link = link;
    this.#target.addEventListener("open", (event) => this.onConnectionOpen?.(event));
    // The guide's callbacks get an open request again too: a page with one card may have lost it.
    this.#listen("", ({ type, data }: ReceivedEvent) => {
      const { timestamp, message } = data as { timestamp?: unknown; message?: unknown };
      const values: Record<string, unknown> = { heartbeat: timestamp, error: message };
      (this as unknown as Record<string, Listener | undefined>)[callbackOf(type)]?.(values[type] ?? data);
    });
    this.on("end", (error) => {
      if (error) this.onError?.(error.message);
      if (error?.code === "max_attempts") this.onMaxReconnectAttemptsReached?.();
    });
  }

  /** Where the connection stands; a new object whenever it changes. */
  get state(): ConnectionState {
    return this.#link.state;
  }

  /** The id of the last event, `"<ms>-<seq>"`: where the next connection goes on. */
  get lastEventId(): string | null {
    return this.#link.inbox.cursor;
  }

  /** Connect, anew if it is connected. */
  connect(): void {
    const link = this.#link;
    this.#life.abort();
    this.#life = new AbortController();
    const { signal } = this.#life;
    let run: Scope;

    const start = async () => {
      run = within(signal);
      const own = run;
      link.set({ phase: "connecting", via: null, attempt: 0, retryAt: null, error: null });
      try {
        await follow(link, own.signal);
      } catch (thrown) {
        if (own.signal.aborted) return;
        const error = asError(thrown);
        own.end();
        if (error.code !== "max_attempts") this.#life.abort();
        link.set({ phase: "ended", via: null, retryAt: null, error });
        this.#emit("end", error);
      }
    };
    const notice = ({ type, persisted }: Event & { persisted?: boolean }) => {
      if (type === "pagehide")
        run.end(); // no page with a connection is kept for coming back to
      else if (type === "offline") link.drop?.();
      else if (type === "online" || persisted || document.visibilityState === "visible") {
        if (run.signal.aborted) start();
        else link.wake?.();
      }
    };
    start();
    for (const type of ["online", "offline", "visibilitychange", "pagehide", "pageshow"]) {
      globalThis.addEventListener?.(type, notice, { signal });
    }
  }

  /** Close the connection. `connect()` goes on after `lastEventId`. */
  disconnect(): void {
    const { phase } = this.state;
    this.#life.abort();
    this.#link.set({ phase: "idle", via: null, retryAt: null });
    if (!/^(idle|ended)$/.test(phase)) this.#emit("end", null); // else it was told already
  }

  #emit(type: string, ...detail: unknown[]) {
    this.#target.dispatchEvent(new CustomEvent(type, { detail }));
  }

  /** Listen to events of one type, to every `event`, to `state` or to the `end`. Returns what ends the listening. */
  on<K extends EventType>(type: K, listener: (data: EventData[K], event: ReceivedEvent<K>) => void): () => void;
  on<K extends keyof ClientEvents>(type: K, listener: (value: ClientEvents[K]) => void): () => void;
  on(type: string, listener: Listener): () => void {
    return this.#listen(type, listener);
  }

  #listen(type: string, listener: Listener) {
    const own = (event: Event) => listener(...(event as CustomEvent).detail);
    this.#target.addEventListener(type, own);
    return () => this.#target.removeEventListener(type, own);
  }

  /**
   * Iterate over the events from now on; connects if nothing did. Ends with `disconnect()`, throws what ends the
   * connection, and AgentSSEError `lagged` when more than 10,000 events wait for the reader.
   */
  async *[Symbol.asyncIterator](): AsyncGenerator<ReceivedEvent, void, undefined> {
    const queue: ReceivedEvent[] = [];
    let over = this.state.phase === "ended";
    let error = this.state.error;
    let wake: (() => void) | undefined;
    const end = (why: AgentSSEError | null) => {
      over = true;
      error = why;
      wake?.();
    };
    const offs = [
      this.on("event", (event) => {
        if (!over && queue.push(event) > BACKLOG) end(new AgentSSEError("lagged", "the events were read too slowly"));
        wake?.();
      }),
      this.on("end", end),
    ];
    if (this.state.phase === "idle") this.connect();
    try {
      for (;;) {
        const event = queue.shift();
        if (event) yield event;
        else if (!over) {
          await new Promise<void>((resolve) => {
            wake = resolve;
          });
        } else if (error) throw error;
        else return;
      }
    } finally {
      for (const off of offs) off();
    }
  }

  /**
   * Approve or deny the request shown: `requestId`, else the one that was delivered last. Returns whether the decision stands;
   * never throws. The same answer to the same request is sent once.
   */
  approvePermission(approved: boolean, reason = "", requestId?: string): Promise<boolean> {
    const { http, inbox, session } = this.#link;
    const id = requestId ?? inbox.shown;
    const key = `${approved} ${id}`;
    if (this.#answer?.key === key) return this.#answer.sent;
    const sent = http
      .send(`/permission-response/${session}`, { body: { approved, reason, request_id: id } })
      .then(json)
      .then(
        ({ success }) => success === true,
        () => false,
      );
    this.#answer = { key, sent };
    sent.then((success) => {
      if (!success || !id) this.#answer = undefined;
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
  checkHealth(): Promise<any> {
    const { http, session } = this.#link;
    return http
      .send(`/health/${session}`)
      .then(json)
      .catch(() => null);
  }

  /** Make an authenticated call below `baseUrl`; returns the body's `data`. Throws AgentSSEError. */
  request<T>(path: string, init?: { method?: string; body?: unknown; signal?: AbortSignal }): Promise<T> {
    return this.#link.http.data(path, init);
  }
}

const json = (response: Response) => response.json();

// What of a state is worth telling: not each byte.
const shownOf = ({ phase, via, attempt, retryAt }: ConnectionState) => `${[phase, via, attempt, retryAt]}`;

// Connect alone, or with the other tabs of the same session and subject; what shares is loaded where it can.
async function follow(link: Link, signal: AbortSignal): Promise<never> {
  const tabs =
    link.options.shareTabs !== false && globalThis.navigator?.locks && (await import("./tabs.js").catch(() => null));
  signal.throwIfAborted();
  return tabs ? tabs.shareConnection(link, signal, keepConnected) : keepConnected(link, signal);
}
