// The one error class of this package, and how what went wrong becomes one. Never holds a token.

/** What went wrong, for programs. What is not named here is the service's own `error.code`. */
export type ErrorCode =
  /** 401, or the token expired: another token is needed. */
  | "unauthorized"
  /** 403: the token gives no right to this session, or lacks the scope. */
  | "forbidden"
  /** 429 or 503: `retryAfter` says when to come again. */
  | "limited"
  /** No answer, a broken connection, silence, or what answered is not the service. */
  | "network"
  /** `maxReconnectAttempts` attempts in a row failed. */
  | "max_attempts"
  /** The session was closed. */
  | "session_closed"
  /** An async iterator's reader fell too far behind. */
  | "lagged"
  | (string & {});

/** The one error class of this package. */
export class AgentSSEError extends Error {
  declare readonly code: ErrorCode;
  /** The HTTP status, if there was an answer. */
  declare readonly status: number | null;
  /** Seconds to wait, as `Retry-After` said. */
  declare readonly retryAfter: number | null;
  /** What the service said besides: a conflict's winning decision, or the fields of the event that ended the stream. */
  declare readonly data: unknown;

  constructor(
    code: ErrorCode,
    message: string,
    status: number | null = null,
    retryAfter: number | null = null,
    data: unknown = null,
  ) {
    super(message);
    Object.assign(this, { name: "AgentSSEError", code, status, retryAfter, data });
  }
}

const CODES: Record<number, ErrorCode> = { 401: "unauthorized", 403: "forbidden", 429: "limited", 503: "limited" };

/** Return what a response that is no success says. */
export async function refusal(response: Response): Promise<AgentSSEError> {
  const { status, headers } = response;
  const body = await response.json().catch(() => null);
  const own = body?.error?.code;
  const after = headers.get("Retry-After") as string; // seconds or a date; null is neither
  return new AgentSSEError(
    CODES[status] ?? (typeof own === "string" ? own : `http_${status}`),
    body?.message ?? `HTTP status ${status}`,
    status,
    Math.max(0, Number(after) || (Date.parse(after) - Date.now()) / 1000) || null,
    body?.data ?? null,
  );
}

/** Return any thrown value as this package's error. */
export const asError = (error: unknown): AgentSSEError =>
  error instanceof AgentSSEError ? error : new AgentSSEError("network", `${error}`);
