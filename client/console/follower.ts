// One followed session: the components' store, and the events kept of it. Tells React at most once per animation frame,
// so never while the tab is hidden.

import { type SessionStore, type Shared, sessionStore } from "../src/react/store.js";
import type { Answer, AnswerResult, ReceivedEvent } from "../src/types.js";
import { type Filter, Rows } from "./filter.js";
import { EventLog } from "./log.js";

const MAX_REQUESTS = 1000; // remembered, so as not to list their repeats

export class Follower {
  readonly log = new EventLog();
  readonly rows = new Rows(this.log);
  /** Counts up with whatever is to be drawn. */
  version = 0;
  /** What the session's events add up to, as of the last frame. */
  shared: Shared;
  #dropped = 0;
  #frame = 0;
  readonly #requests = new Set<unknown>();
  readonly #store: SessionStore;
  readonly #listeners = new Set<() => void>();
  readonly #stops: (() => void)[];

  /**
   * Connects. `onOpenRequests` learns how many permission requests are open, at once, whether the tab is seen or not.
   */
  constructor(
    readonly sessionId: string,
    token: string,
    baseUrl: string,
    readonly onOpenRequests: (count: number) => void,
  ) {
    // A console that is left open comes back after any outage.
    const options = { baseUrl, shareTabs: true, maxReconnectAttempts: Number.POSITIVE_INFINITY };
    this.#store = sessionStore(sessionId, token, options);
    this.#store.renew(token, undefined);
    this.shared = this.#store.snapshot();
    const stopEvents = this.#store.client.on("event", (event) => this.#receive(event));
    this.#stops = [stopEvents, this.#store.subscribe(() => this.#changed())];
  }

  /** End the connection for good; nothing is drawn afterwards. */
  close(): void {
    for (const stop of this.#stops) stop();
    this.#store.client.disconnect();
    cancelAnimationFrame(this.#frame);
    this.#listeners.clear();
    this.onOpenRequests(0);
  }

  /** Connect now, whatever it waits for. */
  readonly connect = (): void => this.#store.client.connect();

  /** Close the connection until `connect` is called again; what was seen stays. */
  readonly disconnect = (): void => this.#store.client.disconnect();

  /** See `SessionStore.answer`. */
  readonly answer = (requestId: string, answer: Answer): Promise<AnswerResult> => this.#store.answer(requestId, answer);

  readonly cancelCall = (callId: string): Promise<{ status: string }> => this.#store.client.cancelCall(callId);

  /** Put away the session's last error. */
  readonly dismiss = (): void => this.#store.dismiss();

  /** For `useSyncExternalStore`: calls back when `version` has changed. */
  readonly subscribe = (listener: () => void): (() => void) => {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  };

  setFilter(filter: Filter): void {
    this.rows.setFilter(filter);
    this.#draw();
  }

  /** While paused the list stays as it is; what arrives is kept and shown afterwards. */
  pause(paused: boolean): void {
    this.rows.paused = paused;
    this.#draw();
  }

  /** Forget the events that are kept. Calls and open requests stay. */
  clear(): void {
    this.log.clear();
    this.rows.restart();
    this.#draw();
  }

  /** How many rows went from the top of the list since this was asked last. */
  takeDropped(): number {
    const dropped = this.#dropped;
    this.#dropped = 0;
    return dropped;
  }

  #receive(event: ReceivedEvent): void {
    if (event.type === "heartbeat" || this.#isRepeat(event)) return;
    this.log.append(event, Date.now());
    this.#draw();
  }

  // An open request is sent again, without an id, with each heartbeat.
  #isRepeat(event: ReceivedEvent): boolean {
    if (event.type === "stream_reset") this.#requests.clear();
    if (event.type !== "permission_request") return false;
    const { request_id: id } = event.data as { request_id?: unknown };
    const known = this.#requests.has(id);
    this.#requests.add(id);
    if (this.#requests.size > MAX_REQUESTS) this.#requests.delete(this.#requests.values().next().value);
    return known && event.id === null;
  }

  #changed(): void {
    this.onOpenRequests(this.#store.snapshot().session.requests.length);
    this.#draw();
  }

  #draw(): void {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      const { done, dropped } = this.rows.advance();
      this.#dropped += dropped;
      this.shared = this.#store.snapshot();
      this.version += 1;
      for (const listener of this.#listeners) listener();
      if (!done) this.#draw();
    });
  }
}
