// How the session and the service do, and the answers that are remembered, to forget one. Asked again while it is seen.

import { useCallback } from "react";
import { useLanguage } from "../src/react/language.js";
import { cut, oneLine, visible } from "../src/text.js";
import { type Asked, useAsked } from "./hooks.js";
import { CopyButton, useSay } from "./notice.js";
import type { Ask } from "./service.js";
import { type Texts, useTexts } from "./texts.js";
import { dateTime, timeOfId } from "./time.js";

const PERIOD = 5000; // milliseconds

interface Grant {
  readonly grant_id: string;
  readonly tool_name: string;
  readonly server?: string | null;
  readonly risk_level?: string;
  readonly covers: string;
  readonly approved: boolean;
  readonly granted_by?: string;
  readonly parameters?: unknown;
}

interface Health {
  readonly status: string;
  readonly connections: number;
  readonly pending_total: number;
  readonly grants: readonly Grant[];
  readonly last_event_id: string | null;
  readonly redis: { readonly ok: boolean; readonly latency_ms: number | null };
  readonly retained_events: number;
  readonly timestamp: string;
}

interface Props {
  readonly ask: Ask;
  readonly session: string;
  readonly command: string;
}

export function HealthPanel({ ask, session, command }: Props) {
  const texts = useTexts();
  const path = `/health/${encodeURIComponent(session)}`;
  const question = useCallback((signal: AbortSignal) => ask<Health>(path, { signal }), [ask, path]);
  const asked = useAsked(question, PERIOD);
  const { value: health, error } = asked;
  const asOf = dateTime(Date.parse(health?.timestamp ?? ""), useLanguage());
  return (
    <div className="health">
      <div className="bar">
        <span className="muted">{asOf && texts.at(asOf)}</span>
        <div className="buttons">
          <button type="button" className="small" onClick={asked.again}>
            {texts.refresh}
          </button>
          <CopyButton text={() => command}>{texts.copyCurl}</CopyButton>
        </div>
      </div>
      {error && <p className="problem">{texts.failed(visible(error.message))}</p>}
      {health && <Facts health={health} />}
      {health && <Grants ask={ask} session={session} grants={health.grants} asked={asked} />}
    </div>
  );
}

function Facts({ health }: { health: Health }) {
  const texts = useTexts();
  const last = dateTime(timeOfId(health.last_event_id), useLanguage());
  const facts: [string, string, string?][] = [
    [texts.healthStatus, health.status === "degraded" ? texts.degraded : visible(health.status), health.status],
    [texts.redis, health.redis.ok ? `${health.redis.latency_ms} ms` : texts.down, health.redis.ok ? "ok" : "down"],
    [texts.connections, `${health.connections}`],
    [texts.pending, `${health.pending_total}`],
    [texts.retained, `${health.retained_events}`],
    [texts.lastEvent, last || texts.never],
  ];
  return (
    <dl className="facts">
      {facts.map(([name, value, tone]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd data-tone={tone}>{value}</dd>
        </div>
      ))}
    </dl>
  );
}

interface GrantsProps {
  readonly ask: Ask;
  readonly session: string;
  readonly grants: readonly Grant[];
  readonly asked: Asked<Health>;
}

function Grants({ ask, session, grants, asked }: GrantsProps) {
  const texts = useTexts();
  const say = useSay();
  const forget = async (grant: Grant) => {
    try {
      await ask(`/grants/${encodeURIComponent(session)}/${encodeURIComponent(grant.grant_id)}`, { method: "DELETE" });
    } catch (error) {
      say(texts.failed((error as Error).message));
    }
    asked.again();
  };
  return (
    <section aria-labelledby="grants-title">
      <h3 id="grants-title">{texts.grants}</h3>
      {grants.length === 0 && <p className="muted">{texts.noGrants}</p>}
      <ul className="grants">
        {grants.map((grant) => (
          <li key={grant.grant_id}>
            <div className="bar">
              <strong>{cut(visible(grant.tool_name), 200)}</strong>
              <span className="tag" data-tone={grant.approved ? "approved" : "denied"}>
                {grant.approved ? texts.approved : texts.denied}
              </span>
              <button
                type="button"
                className="small"
                aria-label={texts.forgetGrant(visible(grant.tool_name))}
                onClick={() => forget(grant)}
              >
                {texts.forget}
              </button>
            </div>
            <p className="muted">{saidOf(grant, texts)}</p>
          </li>
        ))}
      </ul>
    </section>
  );
}

function saidOf(grant: Grant, texts: Texts): string {
  const covers =
    grant.covers === "tool" ? texts.coversTool : `${texts.coversArguments} ${oneLine(grant.parameters, 300)}`;
  const risk = grant.approved && grant.risk_level ? texts.upTo(visible(grant.risk_level)) : "";
  const who = grant.granted_by ? texts.by(visible(grant.granted_by)) : "";
  return [covers, grant.server && visible(grant.server), risk, who].filter(Boolean).join(" · ");
}
