// One permission request with all that is needed to answer it. It answers by a press of its own buttons only: no form,
// no default button, no key-repeat, and not while it has only just come or moved.

import { type KeyboardEvent, type ReactNode, useEffect, useId, useMemo, useRef, useState } from "react";
import { editable, isRounded, visible } from "../text.js";
import type { Answer } from "../types.js";
import type { OpenRequest } from "../view.js";
import { RiskBadge } from "./badge.js";
import { Choices, type Covers } from "./choices.js";
import { Editor } from "./editor.js";
import { useMessages } from "./language.js";
import type { Language, Messages } from "./messages.js";
import { type Edit, isChanged, readEdit } from "./patch.js";
import { Caveats, Countdown, ParametersText } from "./request-parts.js";
import { Scroll } from "./scroll.js";
import { type Steady, useSteady } from "./steady.js";

/** How many cards a list shows; the next one comes in when one goes. */
export const SHOWN_REQUESTS = 200;

export interface PermissionCardProps {
  request: OpenRequest;
  /** Sends the answer; a rejection's message is shown in the card, which stays. */
  onAnswer: (requestId: string, answer: Answer) => Promise<unknown>;
  /** Where it stands in the queue, from 1. */
  position?: { readonly index: number; readonly total: number } | undefined;
  /** An answer is on its way, also one from elsewhere. */
  pending?: boolean | undefined;
  /** Service's clock less this computer's, milliseconds. */
  clockOffset?: number | undefined;
  language?: Language | undefined;
}

/** See the module's head. */
export function PermissionCard(props: PermissionCardProps): ReactNode {
  const { request, position, clockOffset = 0, language } = props;
  const texts = useMessages(language);
  const card = useRef<HTMLElement>(null);
  const { steady, settled } = useSteady(card);
  const draft = useDraft(request);
  const [covers, setCovers] = useState<Covers>("once");
  const [reason, setReason] = useState("");
  const risk = useId();
  const given = { covers, reason, text: draft.text, edit: draft.edit };
  const { note, busy, press } = usePress(props, texts, settled, given);
  const tool = visible(request.tool);
  return (
    <article
      ref={card}
      className="agent-sse-request permission-request"
      aria-label={texts.request(tool)}
      aria-busy={busy}
      data-request={request.id}
      data-risk={request.risk}
      data-steady={steady}
    >
      <header className="agent-sse-row">
        <h4 className="agent-sse-tool" tabIndex={-1} data-heading={request.id} aria-describedby={risk}>
          {tool}
        </h4>
        <span id={risk}>
          <RiskBadge risk={request.risk} language={language} />
        </span>
        {position !== undefined && position.total > 1 && (
          <span className="agent-sse-muted">{texts.position(position.index, position.total)}</span>
        )}
      </header>
      <Facts request={request} texts={texts} />
      {draft.text !== null && draft.edit !== null ? (
        <Editor
          tool={request.tool}
          base={request.parameters}
          text={draft.text}
          edit={draft.edit}
          texts={texts}
          onChange={draft.write}
          onLeave={draft.leave}
        />
      ) : (
        <ParametersText request={request} texts={texts} />
      )}
      <Caveats request={request} texts={texts} />
      <Choices
        scopes={request.truncated ? ["once"] : request.scopes}
        edited={isChanged(draft.edit)}
        covers={covers}
        onCovers={setCovers}
        reason={reason}
        onReason={setReason}
        texts={texts}
      />
      {request.expiresAt !== null && (
        <Countdown tool={request.tool} expiresAt={request.expiresAt} clockOffset={clockOffset} texts={texts} />
      )}
      <Buttons request={request} draft={draft} busy={busy} press={press} texts={texts} />
      <p role="status" className="agent-sse-note">
        {note}
      </p>
    </article>
  );
}

function Facts({ request, texts }: { request: OpenRequest; texts: Messages }): ReactNode {
  return (
    <>
      {request.server !== null && (
        <p>
          {texts.server}: <code>{visible(request.server)}</code>
        </p>
      )}
      {request.message !== null && request.message !== "" && (
        <div className="agent-sse-message">
          <p>{texts.agentSays}:</p>
          <Scroll label={texts.messageOf(visible(request.tool))} texts={texts} className="agent-sse-said">
            <p>{visible(request.message)}</p>
          </Scroll>
        </div>
      )}
    </>
  );
}

interface Draft {
  /** Null while not editing. */
  readonly text: string | null;
  readonly edit: Edit | null;
  readonly button: React.RefObject<HTMLButtonElement | null>;
  readonly write: (text: string) => void;
  readonly begin: () => void;
  readonly leave: () => void;
}

function useDraft(request: OpenRequest): Draft {
  const [text, write] = useState<string | null>(null);
  const button = useRef<HTMLButtonElement>(null);
  const edit = useMemo(() => (text === null ? null : readEdit(request.parameters, text)), [request.parameters, text]);
  const begin = () => write(editable(request.parameters));
  const leave = () => {
    write(null);
    button.current?.focus();
  };
  return { text, edit, button, write, begin, leave };
}

interface ButtonsProps {
  request: OpenRequest;
  draft: Draft;
  busy: boolean;
  /** `byPointer`: not by a key, nor by what presses for the user. */
  press: (approved: boolean, byPointer: boolean) => void;
  texts: Messages;
}

// `aria-disabled` and not `disabled`, which would throw the focus out of the card.
function Buttons({ request, draft, busy, press, texts }: ButtonsProps): ReactNode {
  const tool = visible(request.tool);
  const edited = isChanged(draft.edit);
  const editing = draft.text !== null;
  return (
    <div className="agent-sse-buttons permission-buttons">
      <button
        type="button"
        className="agent-sse-button agent-sse-approve approve-btn"
        aria-label={edited ? texts.approveEditedTool(tool) : texts.approveTool(tool)}
        aria-disabled={busy || (editing && draft.edit?.ok === false)}
        onKeyDown={noRepeat}
        onClick={(event) => press(true, event.detail > 0)}
      >
        {edited ? texts.approveEdited : texts.approve}
      </button>
      <button
        type="button"
        className="agent-sse-button agent-sse-deny reject-btn"
        aria-label={texts.denyTool(tool)}
        aria-disabled={busy}
        onKeyDown={noRepeat}
        onClick={(event) => press(false, event.detail > 0)}
      >
        {texts.deny}
      </button>
      {request.editable && !request.truncated && !isRounded(request.parameters) && (
        <button
          ref={draft.button}
          type="button"
          className="agent-sse-button"
          aria-label={editing ? undefined : texts.editTool(tool)}
          aria-expanded={editing}
          onClick={editing ? draft.leave : draft.begin}
        >
          {editing ? texts.leaveEdit : texts.edit}
        </button>
      )}
    </div>
  );
}

// A key held down since before the card came must not answer it.
function noRepeat(event: KeyboardEvent): void {
  if (event.repeat && (event.key === "Enter" || event.key === " ")) event.preventDefault();
}

interface Given {
  readonly covers: Covers;
  readonly reason: string;
  readonly text: string | null;
  readonly edit: Edit | null;
}

function usePress(props: PermissionCardProps, texts: Messages, settled: Steady["settled"], given: Given) {
  const { request, onAnswer, pending = false } = props;
  const [note, setNote] = useState("");
  const sending = useRef(false); // two clicks may come before the first one's state
  const busy = pending || note === texts.sending;
  // What was said of the parameters before they were changed is no longer true.
  // biome-ignore lint/correctness/useExhaustiveDependencies: with each change of the text
  useEffect(() => {
    if (!sending.current) setNote("");
  }, [given.text]);
  const send = async (approved: boolean) => {
    sending.current = true;
    setNote(texts.sending);
    try {
      await onAnswer(request.id, answerOf(approved, given));
      setNote("");
    } catch (error) {
      setNote(texts.notSent(visible(error instanceof Error ? error.message : String(error))));
    } finally {
      sending.current = false;
    }
  };
  const press = (approved: boolean, byPointer: boolean) => {
    if (sending.current || pending) return;
    if (!settled(byPointer)) setNote(texts.justMoved);
    else if (approved && given.edit?.ok === false) setNote(texts.fixFirst);
    else void send(approved);
  };
  return { note, busy, press };
}

/** What is sent: a change goes with a yes only, and the answer to what was changed holds once (docs/permissions.md). */
function answerOf(approved: boolean, { covers, reason, edit }: Given): Answer {
  const answer: Answer = { approved, ...(reason === "" ? {} : { reason }) };
  if (edit?.ok === true && isChanged(edit)) return approved ? { ...answer, parametersPatch: edit.patch } : answer;
  return covers === "once" ? answer : { ...answer, scope: "session", covers };
}
