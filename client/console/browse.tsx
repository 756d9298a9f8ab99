// The events: filter and search above, the list, and the one that is looked at below.

import { type KeyboardEvent, useEffect, useRef, useState } from "react";
import { visible } from "../src/text.js";
import { saveFile } from "./clipboard.js";
import { EventList, indexOf } from "./events.js";
import { EVERYTHING, type Filter } from "./filter.js";
import type { Follower } from "./follower.js";
import { useVersion } from "./hooks.js";
import { Inspector } from "./inspector.js";
import { type Entry, ndjson } from "./log.js";
import { CopyButton } from "./notice.js";
import { useStatusText, useTexts } from "./texts.js";

const TYPES = [
  "tool_status", "permission_request", "permission_response_result", "permission_cleared", "tool_result",
  "result_cleared", "stream_reset", "error",
]; // biome-ignore format: a table
const STATUSES = [
  "pending", "waiting_permission", "executing", "completed", "failed", "denied", "cancelled", "approved", "expired", "none",
]; // biome-ignore format: a table

interface Props {
  readonly follower: Follower;
  readonly filter: Filter;
  readonly onFilter: (filter: Filter) => void;
  readonly streamCommand: string;
}

export function Browse({ follower, filter, onFilter, streamCommand }: Props) {
  const [chosen, setChosen] = useState<Entry | null>(null);
  const list = useRef<HTMLDivElement>(null);
  useEffect(() => follower.setFilter(filter), [follower, filter]);
  const move = (by: -1 | 1) => {
    const { shown } = follower.rows;
    const next = chosen && shown[indexOf(shown, chosen.seq) + by];
    if (next) setChosen(next);
  };
  const close = () => {
    setChosen(null);
    list.current?.focus();
  };
  const onKeyDown = (event: KeyboardEvent) => {
    if (event.key === "Escape" && chosen && !(event.target instanceof HTMLInputElement)) close();
  };
  return (
    // biome-ignore lint/a11y/noStaticElementInteractions: Escape closes what is open in it, wherever the focus is
    <div className="browse" onKeyDown={onKeyDown}>
      <FilterBar follower={follower} filter={filter} onFilter={onFilter} />
      <ListBar follower={follower} streamCommand={streamCommand} />
      <EventList key={JSON.stringify(filter)} box={list} follower={follower} chosen={chosen} onChoose={setChosen} />
      {chosen && <Inspector entry={chosen} onMove={move} onClose={close} />}
    </div>
  );
}

function FilterBar({ follower, filter, onFilter }: Omit<Props, "streamCommand">) {
  const texts = useTexts();
  useVersion(follower);
  const statusText = useStatusText();
  const search = useSlash();
  const set = (part: Partial<Filter>) => onFilter({ ...filter, ...part });
  return (
    <form className="filter" aria-label={texts.filter} onSubmit={(event) => event.preventDefault()}>
      <input
        ref={search}
        type="search"
        aria-label={texts.search}
        aria-keyshortcuts="/"
        placeholder={texts.search}
        maxLength={1000}
        spellCheck={false}
        value={filter.text}
        onChange={(event) => set({ text: event.target.value })}
      />
      <Choice
        label={texts.type}
        any={texts.anyType}
        value={filter.type}
        from={TYPES}
        onChange={(type) => set({ type })}
      />
      <Choice
        label={texts.tool}
        any={texts.anyTool}
        value={filter.tool}
        from={[...follower.log.tools].sort()}
        onChange={(tool) => set({ tool })}
      />
      <Choice
        label={texts.status}
        any={texts.anyStatus}
        value={filter.status}
        from={STATUSES}
        nameOf={statusText}
        onChange={(status) => set({ status })}
      />
      {filter !== EVERYTHING && (
        <button type="button" className="small" onClick={() => onFilter(EVERYTHING)}>
          {texts.clearFilter}
        </button>
      )}
    </form>
  );
}

interface ChoiceProps {
  readonly label: string;
  readonly any: string;
  readonly value: string;
  readonly from: readonly string[];
  readonly nameOf?: (value: string) => string;
  readonly onChange: (value: string) => void;
}

function Choice({ label, any, value, from, nameOf = visible, onChange }: ChoiceProps) {
  return (
    <select aria-label={label} value={value} onChange={(event) => onChange(event.target.value)}>
      <option value="">{any}</option>
      {from.map((one) => (
        <option key={one} value={one}>
          {nameOf(one).slice(0, 80)}
        </option>
      ))}
    </select>
  );
}

function ListBar({ follower, streamCommand }: { follower: Follower; streamCommand: string }) {
  const texts = useTexts();
  useVersion(follower);
  const { rows, log, sessionId } = follower;
  const state = [
    texts.shown(rows.shown.length, log.entries.length),
    rows.searching ? texts.searching : "",
    rows.held > 0 ? texts.waiting(rows.held) : "",
    log.dropped > 0 ? texts.gone(log.dropped) : "",
  ];
  const save = () => saveFile(`${sessionId.replaceAll(":", "_")}.ndjson`, ndjson(rows.shown), "application/x-ndjson");
  return (
    <div className="bar">
      <span className="muted count">{state.filter(Boolean).join(" · ")}</span>
      <div className="buttons">
        <button type="button" className="small" aria-pressed={rows.paused} onClick={() => follower.pause(!rows.paused)}>
          {rows.paused ? texts.resume : texts.pause}
        </button>
        <button
          type="button"
          className="small"
          title={texts.exportHint}
          disabled={rows.shown.length === 0}
          onClick={save}
        >
          {texts.exportShown}
        </button>
        <button type="button" className="small" disabled={log.entries.length === 0} onClick={() => follower.clear()}>
          {texts.clear}
        </button>
        <CopyButton text={() => streamCommand}>{texts.copyCurl}</CopyButton>
      </div>
    </div>
  );
}

/** The field that `/` leads to, from anywhere but another field. */
function useSlash() {
  const field = useRef<HTMLInputElement>(null);
  useEffect(() => {
    const onKey = (event: globalThis.KeyboardEvent) => {
      const typing =
        event.target instanceof Element && event.target.closest("input, textarea, select, [contenteditable]");
      if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      field.current?.focus();
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, []);
  return field;
}
