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

// What the client itself tells: no event may pass for it by its type.
const OWN = /^(event|state|end|connection_?open|max.*)$/i;

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
  #listening = new Set<{ type: string; listener: Listener }>();
  #life = new AbortController(); // from connect() to the end
  #answer: (Promise<boolean> & { key: string }) | undefined;

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
        const { type, data } = event;
        const { timestamp, message } = data as { timestamp?: unknown; message?: unknown };
        const values: Record<string, unknown> = { heartbeat: timestamp, error: message };
        link.relay?.(event, previous);
        if (!again) this.#emit("event", event);
        if (OWN.test(type)) return;
        // The guide's callbacks get an open request again too: a page with one card may have lost it.
        this.#call((this as unknown as Record<string, Listener>)[callbackOf(type)], values[type] ?? data);
        if (!again) this.#emit(type, data, event);
      }),
      state: { phase: "idle", via: null, attempt: 0, retryAt: null, lastByteAt: null, error: null },
      beat: heartbeatInterval,
      set: (change) => {
        const before = link.state;
        link.state = { ...before, ...change };
        if (shownOf(before) === shownOf(link.state)) return;
        link.relay?.();
        this.#emit("state", link.state);
        if (link.state.phase === "open" && before.phase !== "open") {
          this.#call(this.onConnectionOpen, new Event("open"));
        }
      },
    };
    this.#link = link;
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
        if (error.status || !error.data) this.#call(this.onError, error.message); // else its event has told it
        if (error.code === "max_attempts") this.#call(this.onMaxReconnectAttemptsReached);
        this.#emit("end", error);
      }
    };
    const notice = ({ type, persisted }: Event & { persisted?: boolean }) => {
      if (type === "pagehide")
        run.end(); // no page with a connection is kept for coming back to
      else if (type === "offline") link.drop?.();
      else if (type === "online" || persisted || !document.hidden) {
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
    if (phase !== "idle" && phase !== "ended") this.#emit("end", null); // else it was told already
  }

  #emit(type: string, ...values: unknown[]) {
    for (const one of [...this.#listening]) {
      if (one.type === type && this.#listening.has(one)) this.#call(one.listener, ...values);
    }
  }

  // What the page's function throws is reported, and disturbs nobody; left to the platform it would end a Node process.
  async #call(listener: Listener | undefined, ...values: unknown[]) {
    try {
      await listener?.apply(this, values);
    } catch (error) {
      (globalThis.reportError ?? console.error)(error);
    }
  }

  /** Listen to events of one type, to every `event`, to `state` or to the `end`. Returns what ends the listening. */
  on<K extends EventType>(type: K, listener: (data: EventData[K], event: ReceivedEvent<K>) => void): () => void;
  on<K extends keyof ClientEvents>(type: K, listener: (value: ClientEvents[K]) => void): () => void;
  on(type: string, listener: Listener): () => void {
    const one = { type, listener };
    this.#listening.add(one);
    return () => {
      this.#listening.delete(one);
    };
  }

  /**
   * Iterate over the events from now on; connects if nothing did. Ends with `disconnect()`, throws what ends the
   * connection, and AgentSSEError `lagged` when more than 10,000 events wait for the reader.
   */
  async *[Symbol.asyncIterator](): AsyncGenerator<ReceivedEvent, void, undefined> {
    const { phase, error } = this.state;
    const queue: (ReceivedEvent | AgentSSEError | null)[] = phase === "ended" ? [error] : [];
    let wake: (() => void) | undefined;
    const put = (item: ReceivedEvent | AgentSSEError | null) => {
      if (queue.length === BACKLOG) item = new AgentSSEError("lagged", "read too slowly");
      if (queue.length <= BACKLOG) queue.push(item);
      wake?.();
    };
    const offs = [this.on("event", put), this.on("end", put)];
    if (phase === "idle") this.connect();
    try {
      for (;;) {
        const item = queue.shift();
        if (item === null) return;
        if (item instanceof AgentSSEError) throw item;
        if (item) yield item;
        else
          await new Promise<void>((resolve) => {
            wake = resolve;
          });
      }
    } finally {
      for (const off of offs) off();
    }
  }

  /**
   * Approve or deny the request shown: `requestId`, else the one that was delivered last. Returns whether the decision
   * stands; never throws. The same answer to the same request is sent once; where none was delivered yet, none is.
   */
  approvePermission(approved: boolean, reason = "", requestId?: string): Promise<boolean> {
    const { http, inbox, session, state } = this.#link;
    const id = requestId ?? inbox.shown;
    if (!id && state.phase !== "idle") return Promise.resolve(false); // nobody has seen what this would answer
    const key = `${approved} ${id}`;
    if (this.#answer?.key === key) return this.#answer;
    const sent = http
      .send(`/permission-response/${session}`, { body: { approved, reason, request_id: id } })
      .then(json)
      .then(({ success }) => success === true)
      .catch(() => false);
    const answer = Object.assign(sent, { key });
    this.#answer = answer;
    answer.then((success) => {
      if (this.#answer === answer && !(success && id)) this.#answer = undefined;
    });
    return answer;
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
    return this.#link.http.data(path, init).catch((error) => {
      throw asError(error);
    });
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
