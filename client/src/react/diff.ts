// A line diff for showing what an edit changes. Pure; it never decides what is sent, `patch.ts` does.

/** One line of a diff; `skipped` stands for `count` unchanged lines. */
export type DiffLine =
  | { readonly kind: "same" | "added" | "removed"; readonly text: string }
  | { readonly kind: "skipped"; readonly count: number };

const MAX_CELLS = 1_000_000;
const CONTEXT = 3;

/** The lines of `after` against those of `before`, unchanged runs cut to three lines around each change. */
export function diffLines(before: string, after: string): DiffLine[] {
  const old = before.split("\n");
  const now = after.split("\n");
  let head = 0;
  while (head < old.length && head < now.length && old[head] === now[head]) head += 1;
  let tail = 0;
  while (tail < Math.min(old.length, now.length) - head && old.at(-1 - tail) === now.at(-1 - tail)) tail += 1;
  const lines = [
    ...old.slice(0, head).map(line("same")),
    ...middle(old.slice(head, old.length - tail), now.slice(head, now.length - tail)),
    ...old.slice(old.length - tail).map(line("same")),
  ];
  return folded(lines);
}

function line(kind: "same" | "added" | "removed"): (text: string) => DiffLine {
  return (text) => ({ kind, text });
}

/** Longest common subsequence; where that would cost too much, all of the old and then all of the new. */
function middle(old: string[], now: string[]): DiffLine[] {
  if (old.length * now.length > MAX_CELLS) return [...old.map(line("removed")), ...now.map(line("added"))];
  const lengths = table(old, now);
  const at = (i: number, j: number) => lengths[i * (now.length + 1) + j] ?? 0;
  const lines: DiffLine[] = [];
  let i = 0;
  let j = 0;
  while (i < old.length || j < now.length) {
    if (i < old.length && j < now.length && old[i] === now[j]) {
      lines.push({ kind: "same", text: old[i] ?? "" });
      i += 1;
      j += 1;
    } else if (j >= now.length || (i < old.length && at(i + 1, j) >= at(i, j + 1))) {
      lines.push({ kind: "removed", text: old[i] ?? "" });
      i += 1;
    } else {
      lines.push({ kind: "added", text: now[j] ?? "" });
      j += 1;
    }
  }
  return lines;
}

/** Row-major `(old + 1) × (now + 1)` lengths of the common subsequences of the remainders. */
function table(old: string[], now: string[]): Uint32Array {
  const width = now.length + 1;
  const lengths = new Uint32Array((old.length + 1) * width);
  for (let i = old.length - 1; i >= 0; i -= 1) {
    for (let j = now.length - 1; j >= 0; j -= 1) {
      const below = lengths[(i + 1) * width + j] ?? 0;
      const right = lengths[i * width + j + 1] ?? 0;
      const both = lengths[(i + 1) * width + j + 1] ?? 0;
      lengths[i * width + j] = old[i] === now[j] ? both + 1 : Math.max(below, right);
    }
  }
  return lengths;
}

function folded(lines: DiffLine[]): DiffLine[] {
  const near = new Set<number>();
  lines.forEach((entry, at) => {
    for (let by = -CONTEXT; entry.kind !== "same" && by <= CONTEXT; by += 1) near.add(at + by);
  });
  const kept: DiffLine[] = [];
  for (let at = 0; at < lines.length; ) {
    let end = at;
    while (end < lines.length && !near.has(end)) end += 1;
    if (end - at > 1) kept.push({ kind: "skipped", count: end - at });
    else end = at + 1; // one line takes no more room than saying that it is left out
    if (end - at === 1) kept.push(...lines.slice(at, end));
    at = end;
  }
  return kept;
}
