// What goes with an answer beside yes or no: how long it holds, and why.

import { type ReactNode, useId } from "react";
import type { Messages } from "./messages.js";

/** For this time only, or for the session: these parameters, or the whole tool. */
export type Covers = "once" | "arguments" | "tool";

const REASON_LENGTH = 2000; // the service takes no more

export interface ChoicesProps {
  scopes: readonly string[];
  /** The parameters are changed: then the answer holds once. */
  edited: boolean;
  covers: Covers;
  onCovers: (covers: Covers) => void;
  reason: string;
  onReason: (reason: string) => void;
  texts: Messages;
}

/** Scope, where the request has a choice, and reason. */
export function Choices(props: ChoicesProps): ReactNode {
  const { scopes, edited, covers, onCovers, reason, onReason, texts } = props;
  const group = useId();
  const choices: [Covers, string][] = [
    ["once", texts.once],
    ["arguments", texts.sessionArguments],
    ["tool", texts.sessionTool],
  ];
  return (
    <>
      {scopes.includes("session") && (
        <fieldset className="agent-sse-scope" disabled={edited}>
          <legend>{texts.scope}</legend>
          {choices.map(([value, label]) => (
            <label key={value}>
              <input
                type="radio"
                name={group}
                checked={edited ? value === "once" : covers === value}
                onChange={() => onCovers(value)}
              />
              {label}
            </label>
          ))}
        </fieldset>
      )}
      <label className="agent-sse-reason">
        {texts.reason}
        <input
          type="text"
          maxLength={REASON_LENGTH}
          autoComplete="off"
          value={reason}
          onChange={(event) => onReason(event.target.value)}
        />
      </label>
    </>
  );
}
