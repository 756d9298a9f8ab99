// What a screen reader is told without being asked: requests at once, the rest when it has a pause.

import { createContext, type ReactNode, useCallback, useState } from "react";

/** Say something; `urgent` interrupts. */
export type Announce = (text: string, urgent?: boolean) => void;

/** Where the parts of a monitor say it; outside of one nothing is said. */
export const AnnouncerContext = createContext<Announce>(() => {});

interface Said {
  readonly polite: string;
  readonly urgent: string;
}

/** The two live regions of a monitor, and how to speak through them. */
export function useAnnouncer(): { announce: Announce; regions: ReactNode } {
  const [said, setSaid] = useState<Said>({ polite: "", urgent: "" });
  const announce = useCallback<Announce>((text, urgent = false) => {
    setSaid((before) => (urgent ? { ...before, urgent: text } : { ...before, polite: text }));
  }, []);
  const regions = (
    <div className="agent-sse-unseen">
      <div aria-live="assertive" data-announcer="assertive">
        {said.urgent}
      </div>
      <div aria-live="polite" data-announcer="polite">
        {said.polite}
      </div>
    </div>
  );
  return { announce, regions };
}
