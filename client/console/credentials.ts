// Who is signed in, and to which session. The token is kept in this tab only, and never put into a URL.

import { useCallback, useEffect, useState } from "react";
import { type Credentials, clearQuery, readFragment, showInAddress } from "./fragment.js";

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
    sessionStorage.setItem(STORE, JSON.stringify(credentials));
    showInAddress(credentials.session);
  }, [credentials]);
  const signIn = useCallback((given: Credentials) => {
    setProblem("");
    setCredentials(given);
  }, []);
  const signOut = useCallback((why: string) => {
    sessionStorage.removeItem(STORE);
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
  const kept = readKept();
  return { token: kept.token, session: said.session || kept.session };
}

function readKept(): Credentials {
  try {
    const kept: unknown = JSON.parse(sessionStorage.getItem(STORE) ?? "{}");
    const { token = "", session = "" } = kept as Partial<Credentials>;
    return { token: String(token), session: String(session) };
  } catch {
    sessionStorage.removeItem(STORE); // not ours, or cut off: the form asks again
    return { token: "", session: "" };
  }
}
