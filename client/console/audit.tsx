// Who decided what: the session's audit, a page at a time, the oldest first.

import { useCallback, useState } from "react";
import { useLanguage } from "../src/react/language.js";
import { cut, oneLine, pretty, visible } from "../src/text.js";
import { Code } from "./code.js";
import { useAsked } from "./hooks.js";
import { CopyButton } from "./notice.js";
import type { Ask } from "./service.js";
import { useTexts } from "./texts.js";
import { dateTime } from "./time.js";

const PAGE = 100; // entries

type AuditEntry = { readonly id: string; readonly at: string; readonly kind: string } & Record<string, unknown>;

interface Page {
  readonly entries: readonly AuditEntry[];
  readonly next: string | null;
}

interface Props {
  readonly ask: Ask;
  readonly session: string;
  readonly command: string;
}

export function AuditPanel({ ask, session, command }: Props) {
  const texts = useTexts();
  const [after, setAfter] = useState("");
  const path = `/audit/${encodeURIComponent(session)}?limit=${PAGE}${after && `&after=${encodeURIComponent(after)}`}`;
  const question = useCallback((signal: AbortSignal) => ask<Page>(path, { signal }), [ask, path]);
  const { value: page, error, busy, again } = useAsked(question);
  return (
    <div className="audit">
      <div className="bar">
        <div className="buttons">
          <button type="button" className="small" disabled={busy} onClick={again}>
            {texts.refresh}
          </button>
          <button type="button" className="small" disabled={!after} onClick={() => setAfter("")}>
            {texts.newest}
          </button>
          <button type="button" className="small" disabled={!page?.next} onClick={() => setAfter(page?.next ?? "")}>
            {texts.older}
          </button>
          <CopyButton text={() => command}>{texts.copyCurl}</CopyButton>
        </div>
      </div>
      {error && <p className="problem">{texts.failed(visible(error.message))}</p>}
      {page?.entries.length === 0 && <p className="muted">{texts.noAudit}</p>}
      <ol className="entries">
        {page?.entries.map((entry) => (
          <Entry key={entry.id} entry={entry} />
        ))}
      </ol>
    </div>
  );
}

function Entry({ entry }: { entry: AuditEntry }) {
  const [open, setOpen] = useState(false);
  const language = useLanguage();
  const outcome = oneLine(entry.outcome ?? entry.kind, 40);
  const by = [entry.by, entry.resolved_by, entry.rule].map((part) => oneLine(part, 100)).filter(Boolean);
  const about = entry.tool_name ?? entry.tool_call_id ?? entry.grant_id;
  return (
    <li>
      <details onToggle={(event) => setOpen(event.currentTarget.open)}>
        <summary>
          <time className="muted">{dateTime(Date.parse(entry.at), language)}</time>{" "}
          <strong>{oneLine(about, 100)}</strong>{" "}
          <span className="tag" data-tone={outcome}>
            {outcome}
          </span>{" "}
          <span className="muted">{[...by, oneLine(entry.reason, 200)].filter(Boolean).join(" · ")}</span>
        </summary>
        {open && <Code label={oneLine(about, 100)} text={cut(pretty(entry), 50_000)} />}
      </details>
    </li>
  );
}
