// The console: signing in, choosing a session, and how it looks. Knows the token; gives it to the client only.

import { type ReactNode, useCallback, useEffect, useMemo, useState } from "react";
import { LanguageContext } from "../src/react/language.js";
import { visible } from "../src/text.js";
import { Connection } from "./connection.js";
import { useCredentials } from "./credentials.js";
import type { Credentials } from "./fragment.js";
import { useFollower } from "./hooks.js";
import { Notice } from "./notice.js";
import { applyPreferences, type Preferences, readPreferences, THEMES, type Theme } from "./preferences.js";
import { asker } from "./service.js";
import { Session } from "./session.js";
import { Sessions } from "./sessions.js";
import { SignIn } from "./signin.js";
import { TEXTS, useTexts } from "./texts.js";

/** `baseUrl` is the service's address with its prefix, as the page has it. */
export function App({ baseUrl }: { baseUrl: string }) {
  const [preferences, setPreferences] = useState(readPreferences);
  useEffect(() => applyPreferences(preferences), [preferences]);
  return (
    <LanguageContext value={preferences.language}>
      <Console baseUrl={baseUrl} look={<Look preferences={preferences} onChange={setPreferences} />} />
    </LanguageContext>
  );
}

function Console({ baseUrl, look }: { baseUrl: string; look: ReactNode }) {
  const texts = useTexts();
  const { credentials, problem, misplaced, signIn, signOut } = useCredentials();
  const onUnauthorized = useCallback(() => signOut(texts.unauthorized), [signOut, texts]);
  const { token } = credentials;
  return (
    // Another token may be another subject's: nothing of the one before stays.
    <Notice key={token}>
      {token ? (
        <SignedIn
          credentials={credentials}
          baseUrl={baseUrl}
          look={look}
          onChoose={(chosen) => signIn({ token, session: chosen })}
          onSignOut={() => signOut("")}
          onUnauthorized={onUnauthorized}
        />
      ) : (
        <SignedOut
          session={credentials.session}
          problem={problem || (misplaced ? texts.misplaced : "")}
          look={look}
          onSignIn={signIn}
        />
      )}
    </Notice>
  );
}

interface SignedOutProps {
  readonly session: string;
  readonly problem: string;
  readonly look: ReactNode;
  readonly onSignIn: (credentials: Credentials) => void;
}

function SignedOut({ session, problem, look, onSignIn }: SignedOutProps) {
  const texts = useTexts();
  return (
    <>
      <header className="top">
        <h1>{texts.title}</h1>
        <div className="controls">{look}</div>
      </header>
      <SignIn key={session} session={session} problem={problem} onSignIn={onSignIn} />
    </>
  );
}

interface SignedInProps {
  readonly credentials: Credentials;
  readonly baseUrl: string;
  readonly look: ReactNode;
  readonly onChoose: (session: string) => void;
  readonly onSignOut: () => void;
  readonly onUnauthorized: () => void;
}

function SignedIn({ credentials, baseUrl, look, onChoose, onSignOut, onUnauthorized }: SignedInProps) {
  const texts = useTexts();
  const { token, session } = credentials;
  const ask = useMemo(() => asker(token, baseUrl), [token, baseUrl]);
  const base = new URL(baseUrl, location.href).href;
  const follower = useFollower(session, token, baseUrl, useOpenRequests(session));
  return (
    <>
      <button type="button" className="skip" onClick={toRequests}>
        {texts.skip}
      </button>
      <header className="top">
        <h1>{texts.title}</h1>
        {session && <span className="session-name">{visible(session)}</span>}
        {follower && <Connection follower={follower} />}
        <div className="controls">
          {look}
          <button type="button" className="small" onClick={onSignOut}>
            {texts.signOut}
          </button>
        </div>
      </header>
      <main className="work">
        <Sessions ask={ask} chosen={session} follower={follower} onChoose={onChoose} onUnauthorized={onUnauthorized} />
        {follower && (
          <Session key={follower.key} follower={follower} ask={ask} base={base} onUnauthorized={onUnauthorized} />
        )}
        {!session && <p className="muted choose">{texts.choose}</p>}
      </main>
    </>
  );
}

// No link: the fragment names the session.
function toRequests(): void {
  document.getElementById("requests-title")?.focus();
}

/** Say in the tab's title how many requests wait, also while the tab is hidden. */
function useOpenRequests(session: string): (count: number) => void {
  const { title } = useTexts();
  const [count, setCount] = useState(0);
  const name = [visible(session), title].filter(Boolean).join(" · ");
  useEffect(() => {
    document.title = count > 0 ? `(${count}) ${name}` : name;
    return () => {
      document.title = title;
    };
  }, [count, name, title]);
  return setCount;
}

function Look({ preferences, onChange }: { preferences: Preferences; onChange: (preferences: Preferences) => void }) {
  const texts = TEXTS[preferences.language];
  const other = preferences.language === "zh" ? "en" : "zh";
  return (
    <>
      <select
        className="small"
        aria-label={texts.theme}
        value={preferences.theme}
        onChange={(event) => onChange({ ...preferences, theme: event.target.value as Theme })}
      >
        {THEMES.map((theme) => (
          <option key={theme} value={theme}>
            {texts[theme]}
          </option>
        ))}
      </select>
      <button
        type="button"
        className="small"
        lang={other === "zh" ? "zh-CN" : "en"}
        onClick={() => onChange({ ...preferences, language: other })}
      >
        {other === "zh" ? "中文" : "English"}
      </button>
    </>
  );
}
