// How the console's parts follow a session, the time, and the service, without drawing more than is seen.

import { useEffect, useRef, useState, useSyncExternalStore } from "react";
import type { Shared } from "../src/react/store.js";
import { Follower } from "./follower.js";

/** Follow a session for as long as the component is there; null while none is chosen. */
export function useFollower(
  session: string,
  token: string,
  baseUrl: string,
  onOpenRequests: (count: number) => void,
): Follower | null {
  const [follower, setFollower] = useState<Follower | null>(null);
  const notice = useRef(onOpenRequests);
  notice.current = onOpenRequests;
  useEffect(() => {
    if (!session) return;
    const next = new Follower(session, token, baseUrl, (count) => notice.current(count));
    setFollower(next);
    return () => {
      next.close();
      setFollower(null);
    };
  }, [session, token, baseUrl]);
  return follower;
}

/** What the session's events add up to, and how its connection does; drawn anew when either changes. */
export function useShared(follower: Follower): Shared {
  return useSyncExternalStore(follower.subscribe, () => follower.shared);
}

/** Draw anew with every event: for the list of them. */
export function useVersion(follower: Follower): number {
  return useSyncExternalStore(follower.subscribe, () => follower.version);
}

/** This computer's clock, Unix milliseconds, read once a period while the tab is seen and `running`. */
export function useNow(running = true, period = 1000): number {
  const [now, setNow] = useState(Date.now);
  useEffect(() => {
    if (!running) return;
    setNow(Date.now());
    const timer = setInterval(() => {
      if (document.visibilityState === "visible") setNow(Date.now());
    }, period);
    return () => clearInterval(timer);
  }, [running, period]);
  return now;
}

/** What a question to the service has come to. */
export interface Asked<T> {
  readonly value: T | null;
  readonly error: Error | null;
  readonly busy: boolean;
  /** Ask once more, now. */
  readonly again: () => void;
}

/**
 * Ask the service when the component appears or `ask` changes, and again every `period` milliseconds while the tab is
 * seen (0: never). The last answer stays while there is no new one. Keep `ask` with `useCallback`.
 */
export function useAsked<T>(ask: (signal: AbortSignal) => Promise<T>, period = 0): Asked<T> {
  const [turn, setTurn] = useState(0);
  const [state, setState] = useState<Omit<Asked<T>, "again">>({ value: null, error: null, busy: true });
  // biome-ignore lint/correctness/useExhaustiveDependencies: turn asks again
  useEffect(() => {
    const stop = new AbortController();
    setState((old) => ({ ...old, busy: true }));
    ask(stop.signal).then(
      (value) => !stop.signal.aborted && setState({ value, error: null, busy: false }),
      (error: unknown) => !stop.signal.aborted && setState((old) => ({ ...old, error: asError(error), busy: false })),
    );
    return () => stop.abort();
  }, [ask, turn]);
  useEffect(() => {
    if (period === 0) return;
    const timer = setInterval(() => {
      if (document.visibilityState === "visible") setTurn((old) => old + 1);
    }, period);
    return () => clearInterval(timer);
  }, [period]);
  return { ...state, again: () => setTurn((old) => old + 1) };
}

function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
}
