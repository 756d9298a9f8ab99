// One followed session: what is to be decided, the calls, and the tabs beside them.

import { useCallback, useEffect, useMemo, useState } from "react";
import { oneLine, visible } from "../src/text.js";
import type { ToolCall } from "../src/view.js";
import { AuditPanel } from "./audit.js";
import { Browse } from "./browse.js";
import { Calls } from "./calls.js";
import { commandsOf } from "./curl.js";
import { EVERYTHING } from "./filter.js";
import type { Follower } from "./follower.js";
import { HealthPanel } from "./health.js";
import { useShared } from "./hooks.js";
import { Panel } from "./panel.js";
import { Requests } from "./requests.js";
import type { Ask } from "./service.js";
import { useTexts } from "./texts.js";

interface Props {
  readonly follower: Follower;
  readonly ask: Ask;
  /** The service's absolute address with its prefix. */
  readonly base: string;
  readonly onUnauthorized: () => void;
}

export function Session({ follower, ask, base, onUnauthorized }: Props) {
  const texts = useTexts();
  const { sessionId } = follower;
  const [filter, setFilter] = useState(EVERYTHING);
  const [tab, setTab] = useState("events");
  const commands = useMemo(() => commandsOf(base, sessionId), [base, sessionId]);
  const { error } = useShared(follower).connection;
  useEffect(() => {
    if (error?.status === 401) onUnauthorized();
  }, [error, onUnauthorized]);
  const showEvents = useCallback((call: ToolCall) => {
    setFilter({ ...EVERYTHING, text: JSON.stringify(call.id).slice(1, -1) }); // as it stands in the JSON
    setTab("events");
  }, []);
  const browse = () => (
    <Browse follower={follower} filter={filter} onFilter={setFilter} streamCommand={commands.stream} />
  );
  const tabs = [
    { id: "events", label: texts.events, content: browse },
    {
      id: "health",
      label: texts.health,
      content: () => <HealthPanel ask={ask} session={sessionId} command={commands.health} />,
    },
    {
      id: "audit",
      label: texts.audit,
      content: () => <AuditPanel ask={ask} session={sessionId} command={commands.audit} />,
    },
  ];
  return (
    <>
      <div className="live">
        <h2 className="unseen">{visible(sessionId)}</h2>
        <Problems follower={follower} />
        <Requests follower={follower} commandOf={commands.answer} />
        <Calls follower={follower} onShowEvents={showEvents} cancelCommand={commands.cancel} />
      </div>
      <Panel label={texts.details} tabs={tabs} chosen={tab} onChoose={setTab} />
    </>
  );
}

/** What went wrong: of the connection, and what the session said. */
function Problems({ follower }: { follower: Follower }) {
  const texts = useTexts();
  const { session: view, connection } = useShared(follower);
  const said = view.error && [view.error.code, view.error.message].map((part) => oneLine(part, 500)).filter(Boolean);
  const lines = [view.closed ? texts.closed : said?.join(": "), view.reset && texts.reset(visible(view.reset))].filter(
    Boolean,
  );
  return (
    <div className="problems" role="alert">
      {connection.phase === "ended" && connection.error && !view.closed && (
        <p className="problem">{texts.failed(visible(connection.error.message))}</p>
      )}
      {lines.length > 0 && (
        <p className="problem">
          {lines.join(" ")}{" "}
          {!view.closed && (
            <button type="button" className="small" onClick={follower.dismiss}>
              {texts.dismiss}
            </button>
          )}
        </p>
      )}
    </div>
  );
}
