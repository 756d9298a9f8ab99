// One connection for all tabs of a session and subject: the tab that holds a Web Lock reads the stream and tells the
// others; these catch up by polls with their own token, so nobody sees what it may not, and whatever was missed heals.

import { backoff, endure } from "./connection.js";
import { AgentSSEError, asError } from "./errors.js";
import { isAfter } from "./inbox.js";
import { type Link, within } from "./link.js";
import { sleep, takePage } from "./poll.js";
import type { ConnectionState } from "./types.js";

const BACKLOG = 1000; // messages kept while a follower catches up
const GREETING = 2000; // ms that a newcomer gives the leader to answer, as if it were a heartbeat's interval
const AGAIN = 1000; // ms until it is asked again for what it does not have, as after a loss of history
const VERSION = 1; // of what tabs tell each other: those that loaded another one are no part of it
const RELAYED = /^(heartbeat|permission_request)$/; // also without an id

/** What tabs tell each other. */
interface Message {
  /** A follower asks whether the leader is there. */
  hello?: boolean;
  /** Somebody looks at the follower: the leader is not to wait any longer. */
  wake?: boolean;
  state: ConnectionState;
  beat: number;
  /** The leader's cursor. */
  tip: string | null;
  /** An event, with the cursor before it. */
  id?: string | null | undefined;
  raw?: string | false | undefined;
  previous?: string | null | undefined;
  /** The leader was reset. */
  reset?: boolean;
}

// Whether something else in this origin has not used the channel.
const isMessage = (data: Message | null): data is Message => typeof data?.beat === "number" && !!data.state;

/** Return what a token says of itself; nothing for what cannot be read. Decides nothing about rights. */
export function claimsOf(token: string): { sub?: string; exp?: number } {
  try {
    return JSON.parse(atob((token.split(".")[1] as string).replace(/[-_]/g, (sign) => (sign === "-" ? "+" : "/"))));
  } catch {
    return {};
  }
}

/**
 * Run `lead` in one of the tabs that use this session of this service as the same subject, and follow it in the others;
 * ends as `lead` does. Whose token names no subject is alone, and so is who has no origin (in Node).
 */
export async function shareConnection(
  link: Link,
  signal: AbortSignal,
  lead: (link: Link, signal: AbortSignal) => Promise<never>,
): Promise<never> {
  const { http, inbox, session } = link;
  const claims = async () => {
    try {
      return claimsOf(await http.token());
    } catch {
      return {}; // whoever needs a token for a request tries again
    }
  };
  const { sub } = await claims();
  signal.throwIfAborted();
  const { BroadcastChannel, location } = globalThis;
  if (!sub || !BroadcastChannel || !location || !URL.canParse(http.base, location.href)) return lead(link, signal);
  const key = `agent-sse/${VERSION} ${new URL(http.base, location.href)} ${session} ${sub}`;
  const channel = new BroadcastChannel(key);
  signal.addEventListener("abort", () => channel.close());

  const say = (more: Partial<Message>) => {
    const state = { ...link.state, via: "tab", error: null };
    if (!signal.aborted) channel.postMessage({ state, beat: link.beat, tip: inbox.cursor, ...more });
  };

  const follow = (over: AbortSignal, fail: (error?: unknown) => void) => {
    let quiet = false; // not a word for a heartbeat, so the leader was asked
    let timer: ReturnType<typeof setTimeout> | undefined;
    let pace = Math.min(link.beat, GREETING);
    let good = 0; // until when this tab's token needs no new yes of the service, Unix ms; 0 while there is none
    let failed = 0; // requests in a row
    let vain = 0; // pages in a row that said nothing new, while no event came either
    let missed: Message[] | undefined; // while it catches up
    let tip: string | null;

    // A leader that is silent for two heartbeats, and does not answer either, is frozen: another tab takes over.
    const listen = () => {
      clearTimeout(timer);
      timer = setTimeout(silent, pace * (1 + Math.random() / 2));
    };
    const silent = () => {
      if (quiet) return fail();
      quiet = true;
      listen();
      say({ hello: true });
    };

    const catchUp = async () => {
      missed = [];
      if (vain > 2) await sleep(AGAIN);
      try {
        vain = (await takePage(link, 0, over)) ? 0 : vain + 1;
        const { exp = Infinity } = await claims();
        good = Math.max(exp * 1000, Date.now() + link.beat);
        failed = 0;
      } catch (thrown) {
        if (over.aborted) return;
        const error = asError(thrown);
        try {
          endure(link.options, ++failed, error);
        } catch (end) {
          return fail(end);
        }
        good = 0;
        link.set({ phase: "connecting" });
        await sleep(backoff(3, 1000, 4000, error));
      }
      const waiting = missed;
      missed = undefined;
      if (over.aborted) return;
      waiting.forEach(hear);
      if (!missed && (!good || isAfter(tip, inbox.cursor))) catchUp();
    };

    const hear = (message: Message) => {
      if (over.aborted) return; // by a listener
      const { id, raw, previous, reset, state, beat } = message;
      tip = message.tip;
      pace = link.beat = beat;
      quiet = false;
      listen();
      if (!missed && (reset || good < Date.now() || isAfter(id ? previous : tip, inbox.cursor))) catchUp();
      if (missed) {
        // Heard again afterwards, for the state that it says, and for an event that the page did not have.
        if (missed.push({ ...message, reset: false }) > BACKLOG) missed = [];
      } else if (raw) {
        vain = 0;
        try {
          inbox.take(id, raw);
        } catch (error) {
          fail(error);
        }
        if (over.aborted) return;
      }
      link.set({ ...state, phase: good ? state.phase : "connecting", lastByteAt: Date.now() });
    };

    channel.onmessage = ({ data }) => {
      if (isMessage(data) && !data.hello) hear(data);
    };
    over.addEventListener("abort", () => clearTimeout(timer));
    link.wake = () => say({ hello: true, wake: true });
    listen();
    say({ hello: true });
  };

  for (let steal = false; ; ) {
    const following = within(signal);
    const leading = within(signal);
    try {
      await new Promise<never>((_, fail) => {
        follow(following.signal, fail);
        navigator.locks
          .request(key, steal ? { steal } : { signal: following.signal }, () => {
            following.end();
            link.wake = () => {};
            channel.onmessage = ({ data }) => {
              if (!isMessage(data)) return;
              if (data.wake) link.wake?.();
              if (data.hello) say({});
            };
            link.relay = ({ id, type, raw, data } = {}, previous) =>
              say({
                id,
                raw:
                  (id || RELAYED.test(type as string) || (data as { code?: string })?.code === "session_closed") && raw,
                previous,
                reset: type === "stream_reset",
              });
            return lead(link, leading.signal);
          })
          .catch(fail);
      });
    } catch (error) {
      signal.throwIfAborted();
      if (error instanceof AgentSSEError) throw error;
      steal = !error; // else another tab has taken the lock away
      if (error && (error as Error).name !== "AbortError") return lead(link, signal); // no locks in this document
    } finally {
      link.relay = undefined;
      following.end();
      leading.end();
    }
  }
}
