"""A hook that coding agents call before each tool: it asks a user through agent-sse, and says allow or deny.

    {"hooks": {"PreToolUse": [{"matcher": "*", "hooks": [{"type": "command", "timeout": 330,
      "command": "python3 pre_tool_hook.py || exit 2"}]}]}}

Reads ``{"session_id", "tool_name", "tool_input", …}`` on standard input and writes the decision to standard output.
``AGENT_SSE_URL`` and ``AGENT_SSE_TOKEN`` (scope events:publish) say where to ask; ``AGENT_SSE_SESSION`` the session, by
default the agent's own; ``AGENT_SSE_TIMEOUT`` the seconds until it expires (300). Standard library only.

Fails closed: every error is a deny, or exit status 2, which blocks the tool too.
"""

import json
import os
import signal
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

PREFIX = os.environ.get("AGENT_SSE_PREFIX", "/agent_backend/api/sse")
BLOCK = 2  # exit status
WAIT = 30  # s


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """The token is for one service, and a decision from elsewhere is none."""

    def redirect_request(self, *_):  # noqa: D102
        return None


def call(method, path, body=None):
    service = os.environ["AGENT_SSE_URL"]
    if not service.startswith(("http://", "https://")):
        raise ValueError("AGENT_SSE_URL must begin with http:// or https://")
    request = urllib.request.Request(  # noqa: S310 - the scheme was looked at
        f"{service}{PREFIX}/permission-request/{path}", method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {os.environ['AGENT_SSE_TOKEN']}", "Content-Type": "application/json"},
    )  # fmt: skip
    with urllib.request.build_opener(NoRedirects).open(request, timeout=WAIT + 15) as response:
        return response.status, json.load(response)["data"]


def ask(event):
    """Return the decision, asking on while there is none."""
    session = urllib.parse.quote(os.environ.get("AGENT_SSE_SESSION") or event["session_id"], safe="")
    timeout = float(os.environ.get("AGENT_SSE_TIMEOUT", "300"))
    question = {
        "tool_name": event["tool_name"], "parameters": event["tool_input"], "timeout": timeout,
        "risk_level": os.environ.get("AGENT_SSE_RISK", "high"),
    }  # fmt: skip
    if event.get("tool_use_id"):
        question["tool_call_id"] = event["tool_use_id"]
    until = time.monotonic() + timeout + WAIT
    status, data = call("POST", session, question)
    try:
        while status == 202 and time.monotonic() < until:
            status, data = call("GET", f"{session}/{data['request_id']}?wait={WAIT}")
    except BaseException:
        if status == 202:  # nobody waits for it any more
            call("DELETE", f"{session}/{data['request_id']}")
        raise
    return data


def main():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # the agent's own time-out, a user who gave up
        signal.signal(number, lambda *_: sys.exit(BLOCK))
    try:
        data = ask(json.load(sys.stdin))
        allowed = data.get("approved") is True
        reason = f"{data.get('outcome', 'undecided')} by {data.get('resolved_by')}: {data.get('reason') or 'no reason'}"
    except urllib.error.HTTPError as error:
        allowed, reason = False, f"agent-sse refused to ask: {error.code} {error.read(500).decode(errors='replace')}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        allowed, reason = False, f"nobody could be asked: {type(error).__name__}: {error}"
    said = {
        "hookEventName": "PreToolUse", "permissionDecision": "allow" if allowed else "deny",
        "permissionDecisionReason": reason,
    }  # fmt: skip
    json.dump({"hookSpecificOutput": said}, sys.stdout)
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # whatever it is, the tool must not run
        print(f"pre_tool_hook: {error}", file=sys.stderr)
        sys.exit(BLOCK)
