// The sessions that the token may use, to choose one to follow.

import { useCallback } from "react";
import { useLanguage } from "../src/react/language.js";
import { visible } from "../src/text.js";
import type { AgentSSEError } from "../src/types.js";
import type { Follower } from "./follower.js";
import { useAsked, useShared } from "./hooks.js";
import type { Ask } from "./service.js";
import { useTexts } from "./texts.js";
import { dateTime, timeOfId } from "./time.js";

const SHOWN = 200;

interface Row {
  readonly session_id: string;
  readonly last_event_id: string | null;
}

interface Props {
  readonly ask: Ask;
  readonly chosen: string;
  /** Follows the chosen one. */
  readonly follower: Follower | null;
  readonly onChoose: (session: string) => void;
  /** The service does not take the token any more. */
  readonly onUnauthorized: () => void;
}

export function Sessions({ ask, chosen, follower, onChoose, onUnauthorized }: Props) {
  const texts = useTexts();
  const question = useCallback(
    async (signal: AbortSignal) => {
      try {
        return (await ask<{ sessions: Row[] }>("/sessions", { signal })).sessions;
      } catch (error) {
        if ((error as AgentSSEError).status === 401) onUnauthorized();
        throw error;
      }
    },
    [ask, onUnauthorized],
  );
  const { value: rows, error, busy, again } = useAsked(question, 10_000);
  return (
    <nav className="sessions" aria-labelledby="sessions-title">
      <div className="bar">
        <h2 id="sessions-title">{texts.sessions}</h2>
        <button type="button" className="small" onClick={again} disabled={busy}>
          {texts.refresh}
        </button>
      </div>
      {error && <p className="problem">{texts.failed(visible(error.message))}</p>}
      {rows?.length === 0 && <p className="muted">{texts.noSessions}</p>}
      <ul>
        {sorted(rows ?? [], chosen).map((row) => (
          <SessionRow
            key={row.session_id}
            row={row}
            follower={row.session_id === follower?.sessionId ? follower : null}
            chosen={row.session_id === chosen}
            onChoose={onChoose}
          />
        ))}
      </ul>
      {rows && rows.length > SHOWN && <p className="muted">{texts.moreSessions(rows.length - SHOWN)}</p>}
    </nav>
  );
}

interface SessionRowProps extends Pick<Props, "follower" | "onChoose"> {
  readonly row: Row;
  readonly chosen: boolean;
}

function SessionRow({ row, follower, chosen, onChoose }: SessionRowProps) {
  return (
    <li>
      <button type="button" aria-current={chosen ? "true" : undefined} onClick={() => onChoose(row.session_id)}>
        <span className="name">{visible(row.session_id)}</span>
        {follower ? <LiveTime follower={follower} id={row.last_event_id} /> : <Time id={row.last_event_id} />}
      </button>
    </li>
  );
}

function LiveTime({ follower, id }: { follower: Follower; id: string | null }) {
  return <Time id={useShared(follower).session.lastEvent?.id ?? id} />;
}

function Time({ id }: { id: string | null }) {
  const texts = useTexts();
  return <span className="muted">{dateTime(timeOfId(id), useLanguage()) || texts.never}</span>;
}

/** The chosen one and those with the latest events, these first. */
function sorted(rows: readonly Row[], chosen: string): Row[] {
  const time = (row: Row) => timeOfId(row.last_event_id) || 0;
  const all = [...rows].sort((one, other) => time(other) - time(one) || one.session_id.localeCompare(other.session_id));
  return all.filter((row, place) => place < SHOWN || row.session_id === chosen);
}
