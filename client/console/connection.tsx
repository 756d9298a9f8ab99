// How the connection does: its phase, how events come, and how long ago something came.

import { ConnectionBadge } from "../src/react/badge.js";
import { remaining } from "../src/react/clock.js";
import { useLanguage } from "../src/react/language.js";
import { messages } from "../src/react/messages.js";
import type { Follower } from "./follower.js";
import { useNow, useShared } from "./hooks.js";
import { useTexts } from "./texts.js";

export function Connection({ follower }: { follower: Follower }) {
  const texts = useTexts();
  const words = messages[useLanguage()];
  const { connection: state, session } = useShared(follower);
  const { heartbeatAt } = session;
  const { lastByteAt } = follower;
  const now = useNow();
  const since = (time: number) => texts.ago(remaining(Math.floor(Math.max(0, now - time) / 1000) * 1000, words));
  return (
    <div className="connection">
      <ConnectionBadge connection={state} onReconnect={follower.connect} />
      <p className="muted pulse">
        {state.attempt > 0 && <span>{texts.attempt(state.attempt)}</span>}
        {lastByteAt !== null && <span>{`${texts.lastByte} ${since(lastByteAt)}`}</span>}
        {state.phase === "open" && heartbeatAt !== null && <span>{`${texts.heartbeat} ${since(heartbeatAt)}`}</span>}
      </p>
      {state.phase === "idle" && (
        <button type="button" className="small" onClick={follower.connect}>
          {texts.reconnect}
        </button>
      )}
      {state.phase !== "idle" && state.phase !== "ended" && (
        <button type="button" className="small" onClick={follower.disconnect}>
          {texts.disconnect}
        </button>
      )}
    </div>
  );
}
