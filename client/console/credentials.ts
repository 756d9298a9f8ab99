// The token and the session: taken from the URL's fragment, kept in this tab only, never put into a URL.

const STORE = "agent-sse-console";

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

/** Put the session into the address bar, in place of whatever its fragment said. */
export function showInAddress(session: string): void {
  history.replaceState(null, "", location.pathname + location.search + fragmentOf(session));
}

/**
 * Take what the fragment says, and take a token out of the address bar at once; what it leaves out is what this tab
 * kept. Without any token the `token` is empty: somebody has to sign in.
 */
export function begin(): Credentials {
  const said = readFragment(location.hash);
  if (said.token) showInAddress(said.session);
  const kept = readKept();
  // Another token's session is not taken along: it may be somebody else's.
  if (said.token) return said;
  return { token: kept.token, session: said.session || kept.session };
}

/** Keep both for as long as this tab lives, reloads included. */
export function keep(credentials: Credentials): void {
  sessionStorage.setItem(STORE, JSON.stringify(credentials));
}

/** Forget what this tab kept. */
export function forget(): void {
  sessionStorage.removeItem(STORE);
}

function readKept(): Credentials {
  try {
    const kept: unknown = JSON.parse(sessionStorage.getItem(STORE) ?? "{}");
    const { token = "", session = "" } = kept as Partial<Credentials>;
    return { token: String(token), session: String(session) };
  } catch {
    forget(); // not ours, or cut off: the form asks again
    return { token: "", session: "" };
  }
}
