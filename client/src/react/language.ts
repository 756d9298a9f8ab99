// Which language the components speak: a prop, else that of the component around them, else the browser's.

import { createContext, useContext, useSyncExternalStore } from "react";
import { type Language, languageOf, type Messages, messages } from "./messages.js";

export const LanguageContext = createContext<Language | undefined>(undefined);

const never = () => () => {};

/** The language that holds here. On a server English, as the browser's is not known there. */
export function useLanguage(given?: Language): Language {
  const around = useContext(LanguageContext);
  const browser = useSyncExternalStore<Language>(
    never,
    () => languageOf(navigator.language),
    () => "en",
  );
  return given ?? around ?? browser;
}

/** The texts of {@link useLanguage}. */
export function useMessages(given?: Language): Messages {
  return messages[useLanguage(given)];
}
