// The same requests as `curl` commands for a POSIX shell. A token is never in one: they say `$TOKEN`.

/** What one command asks for; `url` is absolute. */
export interface CurlRequest {
  readonly url: string;
  readonly method?: "POST" | "DELETE";
  readonly body?: unknown;
  /** Show what arrives at once, for a stream. */
  readonly unbuffered?: boolean;
}

/** Return a word that a POSIX shell reads as exactly this text. */
export function shellWord(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

/** Return JSON in ASCII only, so that neither a terminal nor an invisible character changes what is sent. */
export function asciiJson(value: unknown): string {
  const numbered = (char: string) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`;
  return JSON.stringify(value).replace(/[^\x20-\x7e]/g, numbered);
}

/** Return the command, on one line. The token is read from the shell's variable `TOKEN`. */
export function curl({ url, method, body, unbuffered = false }: CurlRequest): string {
  const words = ["curl", "-g"]; // -g: brackets of an IPv6 address are no pattern
  if (unbuffered) words.push("-N");
  if (method !== undefined) words.push("-X", method);
  words.push("-H", '"Authorization: Bearer $TOKEN"');
  if (body !== undefined)
    words.push("-H", "'Content-Type: application/json'", "--data-raw", shellWord(asciiJson(body)));
  words.push(shellWord(url));
  return words.join(" ");
}

/** The commands of one session, below the service's absolute address. */
export function commandsOf(base: string, sessionId: string) {
  const url = (endpoint: string) => `${base}/${endpoint}/${encodeURIComponent(sessionId)}`;
  return {
    stream: curl({ url: url("events"), unbuffered: true }),
    health: curl({ url: url("health") }),
    audit: curl({ url: url("audit") }),
    answer: (requestId: string, approved: boolean) =>
      curl({ url: url("permission-response"), method: "POST", body: { approved, request_id: requestId } }),
    cancel: (toolCallId: string) => curl({ url: url("cancel"), method: "POST", body: { tool_call_id: toolCallId } }),
  };
}
