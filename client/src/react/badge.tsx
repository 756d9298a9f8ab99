// The small marks: where the connection stands, a call's status, a risk. Always words, the colour only beside them.

import type { ReactNode } from "react";
import { oneLine, visible } from "../text.js";
import type { ConnectionState } from "../types.js";
import { useNow } from "./clock.js";
import { useMessages } from "./language.js";
import type { Language, Messages } from "./messages.js";

export interface ConnectionBadgeProps {
  connection: ConnectionState;
  /** When the last heartbeat came, Unix milliseconds; shown where given. */
  heartbeatAt?: number | null;
  language?: Language | undefined;
  /** Shows a button that connects at once, while it waits or has ended. */
  onReconnect?: (() => void) | undefined;
}

/** Where the connection stands, with a countdown to the next attempt. */
export function ConnectionBadge({ connection, heartbeatAt, language, onReconnect }: ConnectionBadgeProps): ReactNode {
  const texts = useMessages(language);
  const { phase, error } = connection;
  const stopped = phase === "waiting" || phase === "ended";
  return (
    <div className="agent-sse-connection connection-status" data-phase={phase}>
      <span className="agent-sse-dot" aria-hidden="true" />
      <span role="status" className="agent-sse-connection-state">
        {stateText(connection, texts)}
      </span>
      {phase === "waiting" && <Retry at={connection.retryAt} texts={texts} />}
      {phase === "open" && heartbeatAt != null && <Heartbeat at={heartbeatAt} texts={texts} />}
      {stopped && error !== null && <span className="agent-sse-muted">{oneLine(error.message)}</span>}
      {stopped && onReconnect !== undefined && (
        <button type="button" className="agent-sse-button" onClick={onReconnect}>
          {texts.connectNow}
        </button>
      )}
    </div>
  );
}

function stateText({ phase, via }: ConnectionState, texts: Messages): string {
  if (phase === "connecting") return texts.connecting;
  if (phase === "offline") return texts.offline;
  if (phase === "ended") return texts.ended;
  if (phase !== "open") return texts.disconnected;
  const way = via === "poll" ? texts.viaPoll : via === "tab" ? texts.viaTab : "";
  return way === "" ? texts.connected : `${texts.connected} · ${way}`;
}

function Retry({ at, texts }: { at: number | null; texts: Messages }): ReactNode {
  const now = useNow(at !== null);
  const seconds = at === null ? 0 : Math.ceil((at - now) / 1000);
  return <span className="agent-sse-muted">{seconds > 0 ? texts.retryIn(seconds) : texts.retryNow}</span>;
}

function Heartbeat({ at, texts }: { at: number; texts: Messages }): ReactNode {
  const seconds = Math.max(0, Math.round((useNow() - at) / 1000));
  return <span className="agent-sse-muted">{texts.heartbeat(seconds)}</span>;
}

/** A risk in words and colour; one that is not known is shown as it came. */
export function RiskBadge({ risk, language }: { risk: string; language?: Language | undefined }): ReactNode {
  const texts = useMessages(language);
  return (
    <span className="agent-sse-risk" data-risk={risk}>
      {riskText(risk, texts)}
    </span>
  );
}

/** A risk in words. */
export function riskText(risk: string, texts: Messages): string {
  return Object.hasOwn(texts.risk, risk) ? (texts.risk[risk] ?? "") : texts.otherRisk(visible(risk));
}

/** A call's status in words and colour. */
export function StatusBadge({ status, language }: { status: string; language?: Language | undefined }): ReactNode {
  const texts = useMessages(language);
  return (
    <span className="agent-sse-status" data-status={status}>
      {Object.hasOwn(texts.status, status) ? texts.status[status] : visible(status)}
    </span>
  );
}
