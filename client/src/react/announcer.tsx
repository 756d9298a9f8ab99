// What a screen reader is told without being asked: requests at once, the rest when it has a pause.

import { createContext, type ReactNode, useCallback, useState } from "react";

/** Say something; `urgent` interrupts. */
export type Announce = (text: string, urgent?: boolean) => void;

/** Where the parts of a monitor say it; outside of one nothing is said. */
export const AnnouncerContext = createContext<Announce>(() => {});

interface Said {
  readonly text: string;
  /** Rises, so that the same words are said again. */
  readonly turn: number;
}

const SILENCE: Said = { text: "", turn: 0 };

/** The two live regions of a monitor, and how to speak through them. */
export function useAnnouncer(): { announce: Announce; regions: ReactNode } {
  const [polite, setPolite] = useState(SILENCE);
  const [assertive, setAssertive] = useState(SILENCE);
  const announce = useCallback<Announce>((text, urgent = false) => {
    (urgent ? setAssertive : setPolite)(({ turn }) => ({ text, turn: turn + 1 }));
  }, []);
  const regions = (
    <div className="agent-sse-unseen">
      <div aria-live="assertive" data-announcer="assertive">
        <span key={assertive.turn}>{assertive.text}</span>
      </div>
      <div aria-live="polite" data-announcer="polite">
        <span key={polite.turn}>{polite.text}</span>
      </div>
    </div>
  );
  return { announce, regions };
}
