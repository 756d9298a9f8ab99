// The parts of a request's card that are read: parameters with what is hidden in them, and the time that is left.

import { type ReactNode, useContext, useEffect, useRef } from "react";
import { isRounded, pretty, visible } from "../text.js";
import type { OpenRequest } from "../view.js";
import { AnnouncerContext } from "./announcer.js";
import { remaining, useNow } from "./clock.js";
import type { Messages } from "./messages.js";
import { Scroll } from "./scroll.js";

const LAST_CALL = 30; // seconds before the end, when a screen reader is told once

/** The parameters, whole: nobody approves what was cut off. */
export function ParametersText({ request, texts }: { request: OpenRequest; texts: Messages }): ReactNode {
  return (
    <Scroll label={texts.parametersOf(visible(request.tool))} texts={texts}>
      <pre className="agent-sse-json">{pretty(request.parameters)}</pre>
    </Scroll>
  );
}

/** What the shown parameters do not tell: hidden, cut or rounded. */
export function Caveats({ request, texts }: { request: OpenRequest; texts: Messages }): ReactNode {
  const { masked, truncated, digest, parameters } = request;
  return (
    <>
      {masked.length > 0 && (
        <p className="agent-sse-caveat">
          {texts.masked(masked.length)} <code>{visible(masked.join(" "))}</code>
        </p>
      )}
      {truncated && (
        <p className="agent-sse-caveat agent-sse-warning">
          {texts.truncated} <code>{visible(digest ?? "")}</code>
        </p>
      )}
      {isRounded(parameters) && <p className="agent-sse-caveat agent-sse-warning">{texts.rounded}</p>}
    </>
  );
}

export interface CountdownProps {
  tool: string;
  expiresAt: number;
  clockOffset: number;
  texts: Messages;
}

/** The time left by the service's clock; a screen reader hears of it once, 30 s before the end. */
export function Countdown({ tool, expiresAt, clockOffset, texts }: CountdownProps): ReactNode {
  const left = expiresAt - (useNow() + clockOffset);
  const seconds = Math.ceil(left / 1000);
  const announce = useContext(AnnouncerContext);
  const told = useRef(false);
  useEffect(() => {
    if (told.current || seconds > LAST_CALL || seconds <= 0) return;
    told.current = true;
    announce(texts.expiresSoon(visible(tool), seconds));
  }, [seconds, announce, texts, tool]);
  return (
    <p className="agent-sse-countdown" role="timer" data-soon={seconds <= LAST_CALL}>
      {left > 0 ? texts.expiresIn(remaining(left, texts)) : texts.expired}
    </p>
  );
}
