// The open permission requests, each with the component's own card, and what became of the last ones.

import { useEffect, useMemo, useRef, useState } from "react";
import { riskText } from "../src/react/badge.js";
import { useLanguage } from "../src/react/language.js";
import { messages } from "../src/react/messages.js";
import { PermissionCard, SHOWN_REQUESTS } from "../src/react/permission-card.js";
import { useRequestFocus } from "../src/react/steady.js";
import { cut, oneLine, visible } from "../src/text.js";
import type { OpenRequest, Outcome } from "../src/view.js";
import type { Follower } from "./follower.js";
import { useShared } from "./hooks.js";
import { CopyButton } from "./notice.js";
import { useTexts, wordOf } from "./texts.js";
import { clock } from "./time.js";

const OUTCOMES = 5;

interface Props {
  readonly follower: Follower;
  /** The `curl` command that answers a request. */
  readonly commandOf: (requestId: string, approved: boolean) => string;
}

export function Requests({ follower, commandOf }: Props) {
  const texts = useTexts();
  const language = useLanguage();
  const { session, pending } = useShared(follower);
  const { requests, clockOffset, outcomes } = session;
  const list = useRef<HTMLElement>(null);
  const shown = useMemo(() => requests.slice(0, SHOWN_REQUESTS), [requests]);
  const ids = useMemo(() => shown.map((request) => request.id), [shown]);
  useRequestFocus(list, ids, true);
  return (
    <section ref={list} aria-labelledby="requests-title">
      <h3 id="requests-title" tabIndex={-1} data-heading="">
        {texts.requests}
      </h3>
      <Announcer requests={requests} />
      {requests.length === 0 && <p className="muted">{texts.noRequests}</p>}
      {shown.map((request, index) => (
        <div className="request" key={request.id}>
          <PermissionCard
            request={request}
            onAnswer={follower.answer}
            position={{ index: index + 1, total: requests.length }}
            pending={pending.has(request.id)}
            clockOffset={clockOffset}
          />
          <Commands request={request} commandOf={commandOf} />
        </div>
      ))}
      {requests.length > shown.length && (
        <p className="muted">{messages[language].moreRequests(requests.length - shown.length)}</p>
      )}
      <Outcomes outcomes={outcomes} />
    </section>
  );
}

function Commands({ request, commandOf }: { request: OpenRequest; commandOf: Props["commandOf"] }) {
  const texts = useTexts();
  const tool = cut(visible(request.tool), 100);
  return (
    <div className="buttons">
      <CopyButton label={`${texts.copyApprove}, ${tool}`} text={() => commandOf(request.id, true)}>
        {texts.copyApprove}
      </CopyButton>
      <CopyButton label={`${texts.copyDeny}, ${tool}`} text={() => commandOf(request.id, false)}>
        {texts.copyDeny}
      </CopyButton>
    </div>
  );
}

/** Tells a screen reader of each request that comes, at once. */
function Announcer({ requests }: { requests: readonly OpenRequest[] }) {
  const texts = messages[useLanguage()];
  const known = useRef<ReadonlySet<string>>(new Set());
  const [said, setSaid] = useState("");
  useEffect(() => {
    const fresh = requests.filter(({ id }) => !known.current.has(id));
    known.current = new Set(requests.map(({ id }) => id));
    if (fresh.length === 0) return;
    setSaid(fresh.map(({ tool, risk }) => texts.newRequest(oneLine(tool, 100), riskText(risk, texts))).join(". "));
  }, [requests, texts]);
  return (
    <p className="unseen" aria-live="assertive">
      {said}
    </p>
  );
}

function Outcomes({ outcomes }: { outcomes: readonly Outcome[] }) {
  const texts = useTexts();
  return (
    <ul className="outcomes" aria-label={texts.outcomes} aria-live="polite">
      {outcomes.slice(-OUTCOMES).map((outcome) => (
        <OutcomeRow key={outcome.requestId} outcome={outcome} />
      ))}
    </ul>
  );
}

function OutcomeRow({ outcome: { at, tool, outcome, edited, resolvedBy, reason } }: { outcome: Outcome }) {
  const texts = useTexts();
  const words = messages[useLanguage()];
  const more = [edited && words.withEdits, resolvedBy && texts.by(oneLine(resolvedBy, 100)), oneLine(reason, 300)];
  return (
    <li>
      <time>{at === null ? "" : clock(at)}</time> <strong>{oneLine(tool, 200)}</strong>{" "}
      <span className="tag" data-tone={outcome}>
        {wordOf(words.outcome, outcome)}
      </span>{" "}
      <span className="muted">{more.filter(Boolean).join(" · ")}</span>
    </li>
  );
}
