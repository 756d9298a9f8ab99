// Time for what counts seconds on the page: one timer for all of it, and none while nothing counts.

import { useSyncExternalStore } from "react";
import type { Messages } from "./messages.js";

const TICK = 1000; // milliseconds

const listeners = new Set<() => void>();
let now = Date.now();
let timer: ReturnType<typeof setInterval> | undefined;

function subscribe(listener: () => void): () => void {
  listeners.add(listener);
  if (timer === undefined) {
    now = Date.now();
    timer = setInterval(() => {
      now = Date.now();
      for (const each of listeners) each();
    }, TICK);
  }
  return () => {
    listeners.delete(listener);
    if (listeners.size > 0) return;
    clearInterval(timer);
    timer = undefined;
  };
}

const still = () => () => {};

/** This computer's clock in Unix milliseconds, renewed each second while `running`. */
export function useNow(running = true): number {
  return useSyncExternalStore(
    running ? subscribe : still,
    () => now,
    () => 0,
  );
}

/** A length of time in words. */
export function duration(ms: number, texts: Messages): string {
  if (ms < 1000) return texts.milliseconds(String(Math.round(ms)));
  if (ms < 60_000) return texts.seconds((ms / 1000).toFixed(1));
  return texts.minutes(Math.floor(ms / 60_000), Math.round((ms % 60_000) / 1000) % 60);
}

/** What is left of a time, in whole seconds. */
export function remaining(ms: number, texts: Messages): string {
  const seconds = Math.max(0, Math.ceil(ms / 1000));
  return seconds < 60 ? texts.seconds(String(seconds)) : texts.minutes(Math.floor(seconds / 60), seconds % 60);
}
