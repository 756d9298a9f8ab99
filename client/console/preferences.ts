// Language and theme of the console: the browser's, unless this tab was told otherwise.

import { type Language, languageOf } from "../src/react/messages.js";
import { keep, kept } from "./keep.js";

export type Theme = "auto" | "light" | "dark";
export const THEMES: readonly Theme[] = ["auto", "light", "dark"];

export interface Preferences {
  readonly language: Language;
  readonly theme: Theme;
}

const STORE = "agent-sse-console-look";

/** What this tab keeps, else what the browser prefers. */
export function readPreferences(): Preferences {
  const fallback = languageOf(navigator.language);
  try {
    const { language, theme } = JSON.parse(kept(STORE) ?? "{}") as Partial<Preferences>;
    return {
      language: language === "zh" || language === "en" ? language : fallback,
      theme: THEMES.find((one) => one === theme) ?? "auto",
    };
  } catch {
    return { language: fallback, theme: "auto" };
  }
}

/** Keep them for this tab, and show them: the language stands at the document, the theme at its body. */
export function applyPreferences(preferences: Preferences): void {
  keep(STORE, JSON.stringify(preferences));
  document.documentElement.lang = preferences.language === "zh" ? "zh-CN" : "en";
  if (preferences.theme === "auto") document.body.removeAttribute("data-theme");
  else document.body.dataset.theme = preferences.theme;
}
