// One followed session: the components' store, and the events kept of it. Tells React at most once per animation frame,
// so never while the tab is hidden.

import { SessionStore, type Shared } from "../src/react/store.js";
import type { Answer, AnswerResult, ReceivedEvent } from "../src/types.js";
import { type Filter, Rows } from "./filter.js";
import { EventLog } from "./log.js";

const FROM_THE_START = "0-0"; // all that the service still has; where that is not everything, a reset and a snapshot

let made = 0;

export class Follower {
  /** Tells it from every other one, also of the same session. */
  readonly key = `console ${++made}`;
  readonly log = new EventLog();
  readonly rows = new Rows(this.log);
  /** Counts up with whatever is to be drawn. */
  version = 0;
  /** What the session's events add up to, as of the last frame. */
  shared: Shared;
  #dropped = 0;
  #frame = 0;
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
    // A store of its own: one that was left shortly before would have the calls, and the log none of their events.
    this.#store = new SessionStore(this.key, sessionId, token, {
      baseUrl,
      shareTabs: true,
      lastEventId: FROM_THE_START,
      maxReconnectAttempts: Number.POSITIVE_INFINITY, // a console that is left open comes back after any outage
    });
    this.shared = this.#store.snapshot();
    const stopEvents = this.#store.client.on("event", (event) => this.#receive(event));
    this.#stops = [stopEvents, this.#store.subscribe(() => this.#changed())];
  }

  /** When the last byte arrived, Unix milliseconds. The connection's state, which is told when it changes, is older. */
  get lastByteAt(): number | null {
    return this.#store.client.state.lastByteAt;
  }

  /** End the connection for good; nothing is drawn afterwards. */
  close(): void {
    for (const stop of this.#stops) stop();
    this.#store.client.disconnect();
    cancelAnimationFrame(this.#frame);
    this.#listeners.clear();
    this.onOpenRequests(0);
  }

  /** Connect now, whatever it waits for. A session that was closed begins anew; the events seen of it stay in the log. */
  readonly connect = (): void => this.#store.reconnect();

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
    if (paused) this.rows.pause();
    else this.rows.resume();
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
    if (event.type === "heartbeat") return;
    // Before anything was seen a reset tells of no gap in it: the session is older than its history.
    if (event.type === "stream_reset" && this.log.next === 0) this.#store.dismiss();
    this.log.append(event, Date.now());
    this.#draw();
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
