// What the address bar says: a session, and once a token, which does not stay there.

/** What the console works with; a session may be chosen later. */
export interface Credentials {
  readonly token: string;
  readonly session: string;
}

/** What the fragment says, `#session=s1&token=…`; empty where it says nothing. */
export function readFragment(hash: string): Credentials {
  const fragment = new URLSearchParams(hash.slice(1));
  return { token: fragment.get("token") ?? "", session: fragment.get("session") ?? "" };
}

/** Return the fragment that links to a session, without any token; empty without a session. */
export function fragmentOf(session: string): string {
  return session ? `#${new URLSearchParams({ session })}` : "";
}

/** Put the session into the address bar, in place of whatever its query and fragment said. */
export function showInAddress(session: string): void {
  history.replaceState(null, "", location.pathname + fragmentOf(session));
}

/** Take a token out of the query, which servers write into their logs; nothing reads it. Returns whether one was there. */
export function clearQuery(): boolean {
  const misplaced = new URLSearchParams(location.search).has("token");
  if (misplaced) history.replaceState(null, "", location.pathname + location.hash);
  return misplaced;
}
