// Times as people read them. Pure.

/** Return a time of day with milliseconds, `14:03:27.041`, in this computer's zone; empty for what is no time. */
export function clock(ms: number): string {
  const date = new Date(ms);
  if (Number.isNaN(date.getTime())) return "";
  const two = (value: number) => String(value).padStart(2, "0");
  const parts = [date.getHours(), date.getMinutes(), date.getSeconds()].map(two).join(":");
  return `${parts}.${String(date.getMilliseconds()).padStart(3, "0")}`;
}

/** Return date and time in the language, in this computer's zone. */
export function dateTime(ms: number, language: string): string {
  const date = new Date(ms);
  return Number.isNaN(date.getTime())
    ? ""
    : date.toLocaleString(language, { dateStyle: "medium", timeStyle: "medium" });
}

/** Return when an event id `"<ms>-<seq>"` was given, Unix milliseconds; NaN for what is none. */
export function timeOfId(id: string | null): number {
  return id !== null && /^\d{1,16}-\d+$/.test(id) ? Number(id.slice(0, id.indexOf("-"))) : Number.NaN;
}

/** Return a duration, `340 ms`, `12.4 s`, `3 min 05 s`, `2 h 04 min`. */
export function duration(ms: number): string {
  if (!Number.isFinite(ms)) return "";
  const left = Math.max(0, ms);
  if (left < 1000) return `${Math.round(left)} ms`;
  if (left < 60_000) return `${(Math.floor(left / 100) / 10).toFixed(1)} s`;
  const [unit, small, names] = left < 3_600_000 ? [60_000, 1000, ["min", "s"]] : [3_600_000, 60_000, ["h", "min"]];
  const rest = String(Math.floor((left % unit) / small)).padStart(2, "0");
  return `${Math.floor(left / unit)} ${names[0]} ${rest} ${names[1]}`;
}

/** Where a bar lies in a window of time, in per cent from its left; null when it lies outside. */
export function barOf(from: number, to: number, window: { from: number; to: number }) {
  const width = window.to - window.from;
  if (!(width > 0) || !(to >= window.from) || !(from <= window.to)) return null;
  const left = Math.max(0, ((from - window.from) / width) * 100);
  const right = Math.min(100, ((to - window.from) / width) * 100);
  return { left, width: Math.max(0, right - left) };
}
