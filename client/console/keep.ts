// What this tab keeps over a reload, and no other tab sees. A browser that lets the page keep nothing forgets it.

/** Return what was kept under the name; null when nothing was. */
export function kept(name: string): string | null {
  return tried(() => sessionStorage.getItem(name));
}

/** Keep a text under the name; null forgets it. */
export function keep(name: string, text: string | null): void {
  tried(() => (text === null ? sessionStorage.removeItem(name) : sessionStorage.setItem(name, text)));
}

function tried<T>(access: () => T): T | null {
  try {
    return access();
  } catch (error) {
    if (error instanceof DOMException) return null; // SecurityError: not allowed; QuotaExceededError: no room
    throw error;
  }
}
