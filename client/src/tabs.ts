// One connection for all tabs of a session and subject: the tab that holds a Web Lock reads the stream and tells the
// others; these catch up by polls with their own token, so nobody sees what it may not, and whatever was missed heals.

import { backoff, type Link, nap } from "./connection.js";
import { AgentSSEError, asError, isFinal } from "./errors.js";
import { claimsOf } from "./http.js";
import { isAfter } from "./inbox.js";
import { takePage } from "./poll.js";
import type { ConnectionState } from "./types.js";

const BACKLOG = 1000; // messages kept while a follower catches up
const QUIET = 3; // ticks without a word after which the leader is taken for frozen

/** What tabs tell each other. */
interface Message {
  /** A follower asks whether the leader is there. */
  hello?: boolean;
  phase: ConnectionState["phase"];
  attempt: number;
  retryAt: number | null;
  beat: number;
  /** The leader's cursor. */
  tip: string | null;
  /** An event, with the cursor before it. */
  raw?: string | undefined;
  id?: string | null | undefined;
  previous?: string | null | undefined;
  /** The leader was reset. */
  reset?: string | undefined;
}

/** Run `lead` in one of the tabs that share `key` and follow it in the others; ends as `lead` does. */
export async function shareConnection(
  link: Link,
  key: string,
  signal: AbortSignal,
  lead: (link: Link, signal: AbortSignal) => Promise<never>,
): Promise<never> {
  const { http, inbox } = link;
  const channel = new BroadcastChannel(key);
  signal.addEventListener("abort", () => channel.close());

  const say = (more?: Partial<Message>) => {
    const { phase, attempt, retryAt } = link.state;
    if (!signal.aborted) channel.postMessage({ phase, attempt, retryAt, beat: link.beat, tip: inbox.cursor, ...more });
  };

  const follow = (over: AbortSignal, fail: (error: unknown) => void) => {
    let quiet = 0;
    let ready = false; // caught up once: the service has said yes to this tab's token
    let busy = false;
    let tip: string | null = null;
    let missed: Message[] = [];

    const catchUp = async () => {
      if (busy) return;
      busy = true;
      for (let attempt = 1; ; attempt++) {
        try {
          await takePage(http, link.session, inbox, 0, over);
          break;
        } catch (thrown) {
          if (over.aborted) return;
          const error = asError(thrown);
          if (isFinal(error)) return fail(error);
          await nap(backoff(attempt, 1000, 30_000, error), over).catch(() => {});
        }
      }
      ready = true;
      busy = false;
      const waiting = missed;
      missed = [];
      waiting.forEach(hear);
      if (isAfter(tip, inbox.cursor)) catchUp();
    };

    const hear = (message: Message) => {
      const { raw, id, previous, phase, attempt, retryAt } = message;
      quiet = 0;
      tip = message.tip;
      link.beat = message.beat;
      if (busy) {
        if (missed.push(message) > BACKLOG) missed = [];
      } else if (!ready || message.reset || isAfter(id ? previous : tip, inbox.cursor)) catchUp();
      else if (raw) {
        try {
          inbox.take(id, raw);
        } catch (error) {
          fail(error);
        }
      }
      link.set({ phase: ready ? phase : "connecting", via: "tab", attempt, retryAt, lastByteAt: Date.now() });
    };

    channel.onmessage = ({ data }) => {
      if (!data.hello) hear(data);
    };
    const tick = async () => {
      if (quiet++) say({ hello: true });
      if (quiet > QUIET) fail(undefined);
      const { exp = Infinity } = claimsOf(await http.token());
      if (exp * 1000 < Date.now()) catchUp();
    };
    const timer = setInterval(tick, link.beat * (0.75 + Math.random() / 2));
    over.addEventListener("abort", () => clearInterval(timer));
    say({ hello: true });
  };

  for (let steal = false; ; ) {
    const role = new AbortController();
    const over = AbortSignal.any([signal, role.signal]);
    const following = new AbortController();
    try {
      await new Promise<never>((_, fail) => {
        follow(AbortSignal.any([over, following.signal]), fail);
        navigator.locks
          .request(key, steal ? { steal } : { signal: over }, () => {
            following.abort();
            channel.onmessage = ({ data }) => {
              if (data.hello) say();
            };
            link.relay = (event, previous) => {
              const { id, type, raw, data } = event ?? {};
              if (!type || type === "stream_reset") say({ reset: type });
              else if (id || type === "heartbeat" || (data as { code?: string }).code === "session_closed")
                say({ id, raw, previous });
            };
            say();
            return lead(link, over);
          })
          .catch(fail);
      });
    } catch (error) {
      signal.throwIfAborted();
      if (error instanceof AgentSSEError) throw error;
      steal = !error;
      if (error && (error as Error).name !== "AbortError") return lead(link, signal); // no locks in this document
    } finally {
      link.relay = undefined;
      role.abort();
    }
  }
}
