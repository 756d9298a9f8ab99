// Who is signed in, and to which session. The token is kept in this tab only, and never put into a URL.

import { useCallback, useEffect, useState } from "react";
import { type Credentials, clearQuery, readFragment, showInAddress } from "./fragment.js";
import { keep, kept } from "./keep.js";

const STORE = "agent-sse-console";

/**
 * The credentials, why they are asked for again (empty: at first), whether a token stood in the query, where it is not
 * read, and how to change them.
 */
export function useCredentials() {
  const [misplaced] = useState(clearQuery);
  const [credentials, setCredentials] = useState(begin);
  const [problem, setProblem] = useState("");
  useEffect(() => {
    const onHash = () => {
      const said = readFragment(location.hash);
      if (said.token || said.session) setCredentials(begin());
    };
    addEventListener("hashchange", onHash);
    return () => removeEventListener("hashchange", onHash);
  }, []);
  useEffect(() => {
    if (!credentials.token) return;
    keep(STORE, JSON.stringify(credentials));
    showInAddress(credentials.session);
  }, [credentials]);
  const signIn = useCallback((given: Credentials) => {
    setProblem("");
    setCredentials(given);
  }, []);
  const signOut = useCallback((why: string) => {
    keep(STORE, null);
    if (!why) showInAddress("");
    setProblem(why);
    setCredentials((old) => ({ token: "", session: why ? old.session : "" }));
  }, []);
  return { credentials, problem, misplaced, signIn, signOut };
}

/**
 * Take what the fragment says, and take a token out of the address bar at once; what it leaves out is what this tab
 * kept. Without any token somebody has to sign in.
 */
function begin(): Credentials {
  const said = readFragment(location.hash);
  if (said.token) {
    showInAddress(said.session);
    return said; // another token's session is not taken along: it may be somebody else's
  }
  const old = readKept();
  return { token: old.token, session: said.session || old.session };
}

function readKept(): Credentials {
  try {
    const found: unknown = JSON.parse(kept(STORE) ?? "{}");
    const { token = "", session = "" } = found as Partial<Credentials>;
    return { token: String(token), session: String(session) };
  } catch {
    keep(STORE, null); // not ours, or cut off: the form asks again
    return { token: "", session: "" };
  }
}
