// The form that asks for a token where neither the URL nor the tab has one. What is typed goes nowhere but to the service.

import { type FormEvent, useState } from "react";
import type { Credentials } from "./fragment.js";
import { useTexts } from "./texts.js";

interface Props {
  readonly session: string;
  /** Why it is asked for again; empty at first. */
  readonly problem: string;
  readonly onSignIn: (credentials: Credentials) => void;
}

export function SignIn({ session, problem, onSignIn }: Props) {
  const texts = useTexts();
  const [name, setName] = useState(session);
  const [token, setToken] = useState("");
  const submit = (event: FormEvent) => {
    event.preventDefault();
    if (token.trim()) onSignIn({ session: name.trim(), token: token.trim() });
  };
  return (
    <main className="signin">
      <form onSubmit={submit} aria-labelledby="signin-title">
        <h2 id="signin-title">{texts.signInTitle}</h2>
        {problem && (
          <p className="problem" role="alert">
            {problem}
          </p>
        )}
        <label htmlFor="token">{texts.token}</label>
        <input
          id="token"
          type="password"
          required
          autoComplete="off"
          spellCheck={false}
          value={token}
          onChange={(event) => setToken(event.target.value)}
          aria-describedby="token-hint"
        />
        <p className="muted" id="token-hint">
          {texts.tokenHint} <code>agent-sse token --sub you --session ID</code>
        </p>
        <label htmlFor="session">{texts.session}</label>
        <input
          id="session"
          maxLength={128}
          pattern="[A-Za-z0-9_][A-Za-z0-9._:\-]*"
          autoComplete="off"
          autoCapitalize="off"
          spellCheck={false}
          value={name}
          onChange={(event) => setName(event.target.value)}
          aria-describedby="session-hint"
        />
        <p className="muted" id="session-hint">
          {texts.sessionHint}
        </p>
        <button type="submit" className="primary">
          {texts.signIn}
        </button>
      </form>
    </main>
  );
}
