// What the pages with a client share: it writes down every call of the guide's ten callbacks, for the test to read.

export type Call = [name: string, value: unknown];

const NAMES = [
  "onConnectionOpen",
  "onToolStatusChange",
  "onPermissionRequest",
  "onToolResult",
  "onPermissionCleared",
  "onResultCleared",
  "onPermissionResponseResult",
  "onHeartbeat",
  "onError",
  "onMaxReconnectAttemptsReached",
] as const;

/** Sets all ten callbacks of `client`, of the guide's class or the package's, and returns the list they fill. */
export function record(client: object): Call[] {
  const calls: Call[] = [];
  for (const name of NAMES) {
    // An Event cannot be handed over to the test; that there was one can.
    const keep = (value: unknown) => calls.push([name, value instanceof Event ? { event: value.type } : (value ?? null)]);
    Object.assign(client, { [name]: keep });
  }
  return calls;
}
