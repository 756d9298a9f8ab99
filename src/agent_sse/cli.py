"""The `agent-sse` command. Reads arguments and prints; what the commands do is in the modules that they import.

Those are imported inside the commands, so that ``--help`` and ``token`` do not load the web layer of ``serve``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

import agent_sse
from agent_sse.errors import AgentSseError, ApiError, ConfigurationError, InvalidEvent
from agent_sse.terminal import escape

if TYPE_CHECKING:
    from agent_sse.settings import Settings

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Live tool events over Server-Sent Events, and the user's permission back. "
    "Settings are AGENT_SSE_* environment variables, also from .env (not for the guard).",
)  # fmt: skip

policies = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at a policy of tool calls.")
app.add_typer(policies, name="policy")

T = TypeVar("T")
SessionArgument = Annotated[str, typer.Argument(metavar="SESSION", help="The session's id.")]


def main() -> None:
    """Run the command. A wrong setting or input ends with one line and status 2, any other failure with status 1."""
    try:
        app(prog_name="agent-sse")
    except AgentSseError as error:
        code = f"{error.code}: " if isinstance(error, ApiError) else ""
        for line in getattr(error, "problems", None) or (f"{code}{error}",):  # a policy may have many
            print(f"agent-sse: {escape(line)}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigurationError | InvalidEvent | ApiError) else 1)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"agent-sse {agent_sse.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def _warn(line: str) -> None:
    print(escape(line), file=sys.stderr, flush=True)


def _settings(**overrides: Any) -> Settings:
    from agent_sse.routes import load_settings

    return load_settings(**overrides)


def _run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


@app.command()
def serve(
    *,
    host: Annotated[str | None, typer.Option(help="Address to listen on (AGENT_SSE_HOST, 127.0.0.1).")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to listen on, 0 = any (AGENT_SSE_PORT, 8000).")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes that serve.")] = 1,
    access_log: Annotated[
        bool, typer.Option("--access-log/--no-access-log", help="Write a line for each request.")
    ] = True,
    dev: Annotated[bool, typer.Option("--dev", help="For development: make a secret, print a URL to open.")] = False,
    end_with_input: Annotated[bool, typer.Option("--end-with-input", hidden=True)] = False,
) -> None:
    """Run the service, with an embedded Valkey unless AGENT_SSE_REDIS_URL is set. Ctrl-C or SIGTERM ends it."""
    from agent_sse import serve as service

    if host is not None:
        os.environ["AGENT_SSE_HOST"] = host  # the application builds its settings itself, in each worker
    if port is not None:
        os.environ["AGENT_SSE_PORT"] = str(port)
    settings = _settings()
    if dev:
        settings, lines = service.prepare_dev(settings)
        for line in lines:
            _warn(line)
    if end_with_input:
        service.end_after(service.end_of_input)
    service.run(settings, workers=workers, access_log=access_log)


@app.command()
def token(
    sub: Annotated[str, typer.Option(help="Who the token is for.")],
    session: Annotated[list[str] | None, typer.Option(help="A session it may use; can be given several times.")] = None,
    scope: Annotated[
        str | None, typer.Option(help="Rights, separated by spaces (default: events:read permissions:respond).")
    ] = None,
    ttl: Annotated[float, typer.Option(help="Lifetime in seconds.")] = 3600.0,
) -> None:
    """Print a token signed with AGENT_SSE_JWT_SECRET, or with the secret of `serve --dev`."""
    from agent_sse import auth, serve

    settings = _settings()
    if not settings.jwt_secret and settings.jwt_algorithm.startswith("HS"):
        secret = serve.dev_secret(settings, make=False)
        if secret is None:
            raise ConfigurationError(
                "no secret to sign with: set AGENT_SSE_JWT_SECRET to the service's, or start `agent-sse serve --dev`"
            )
        _warn("signed with the secret of `agent-sse serve --dev`")
        settings = _settings(jwt_secret=secret)
    known = {auth.EVENTS_READ, auth.EVENTS_PUBLISH, auth.PERMISSIONS_RESPOND}
    for word in (scope or "").split():
        if word not in known:
            _warn(f"{word} is none of this service's scopes: {', '.join(sorted(known))}")
    if not session:
        _warn("the token lists no session: it opens only those that its subject owns")
    print(auth.encode_token(settings, subject=sub, sessions=session or None, scope=scope, ttl_seconds=ttl))


@app.command()
def publish(
    session: SessionArgument,
    event: Annotated[
        str, typer.Argument(metavar="JSON", help='{"type": "tool_status", "data": {…}}, or - for standard input.')
    ],
) -> None:
    """Publish an event of type tool_status, tool_result, result_cleared or error, and print its id."""
    body = sys.stdin.buffer.read() if event == "-" else os.fsencode(event)
    print(_run(_publish(session, body)))


async def _publish(session: str, body: bytes) -> str:
    from agent_sse.backend import Backend
    from agent_sse.incoming import read_event
    from agent_sse.masking import Masker
    from agent_sse.publisher import Publisher
    from agent_sse.redis_url import find_redis
    from agent_sse.requests import parse_json
    from agent_sse.store import Store

    settings = _settings()
    try:
        value = parse_json(body)
    except ApiError as error:
        raise ApiError(400, error.code, "the event " + error.message.removeprefix("the body ")) from None
    item = read_event(session, value, limit=settings.max_event_bytes, masker=Masker(settings.mask_keys))
    backend = Backend(await find_redis(settings), timeout=settings.publish_timeout)
    publisher = Publisher(Store(backend, settings), timeout=settings.publish_timeout)
    try:
        return await publisher.publish(item)
    finally:
        await publisher.aclose()
        await backend.aclose()


@app.command()
def watch(session: SessionArgument) -> None:
    """Follow a session live, straight from Redis, and answer its permission requests. Ctrl-C ends it.

    Without a terminal it prints a line per event, and takes answers (y or n; docs/watch.md lists the rest)
    from standard input, one per request.
    """
    from agent_sse import watch as watching

    _run(watching.run(_settings(), session))


@app.command()
def demo(
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of the service (default: 8000, or any free one).")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Commits that the agent proposes in one go.")] = 1,
    timeout: Annotated[
        float | None, typer.Option(min=1, help="Seconds to wait for an answer (300; without a terminal 60).")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="End when the agent is done.")] = False,
    answer: Annotated[str | None, typer.Option(hidden=True, help="y or n, given to every request.")] = None,
) -> None:
    """Run a real MCP server's git tools with a service of its own; a commit needs your permission.

    Without a terminal it ends when the agent is done or nobody has answered in time.
    """
    from agent_sse import demo_run

    logging.getLogger("agent_sse").setLevel(logging.ERROR)
    options = demo_run.Options(port=port, rounds=rounds, timeout=timeout, once=once, answer=answer)
    if status := _run(demo_run.run(options)):
        raise typer.Exit(status)


@app.command(context_settings={"allow_interspersed_args": False})
def guard(
    *,
    session: Annotated[str, typer.Option(help="The session in which the calls are shown.")],
    owner: Annotated[str | None, typer.Option(help="Open the session for this subject of tokens.")] = None,
    policy: Annotated[Path | None, typer.Option(help="Policy file (TOML); read again when it changes.")] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="The server's name in policy and events (default: the package, image, program or script of the "
            "command, for a URL its host and path)."
        ),
    ] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Believe what the server says of its tools.")] = False,
    url: Annotated[str | None, typer.Option(help="Guard the MCP server at this URL instead of a command.")] = None,
    header: Annotated[
        list[str] | None, typer.Option(help="'Name: value' for the URL; ${NAME} is replaced from the environment.")
    ] = None,
    http: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="Serve streamable HTTP at http://127.0.0.1:PORT/mcp instead of stdio; 0 = any port."
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for each permission.")] = 300.0,
    call_timeout: Annotated[
        float,
        typer.Option(min=0, help="Seconds that a tool may take without an answer or progress; 0 = without end."),
    ] = 600.0,
    env_file: Annotated[
        Path | None, typer.Option(help="Read AGENT_SSE_* from this file too; a .env is not read by itself.")
    ] = None,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[-- COMMAND…]", help="What starts the server.")
    ] = None,
) -> None:
    """Be an MCP server in front of another one: its tool calls are shown live, and asked about by the policy.

    agent-sse guard --session s1 -- npx -y @modelcontextprotocol/server-filesystem DIR
    """
    from agent_sse.mcp import guard_command

    options = guard_command.Options(
        session=session, owner=owner, policy=policy, name=name, trust=trust, url=url, headers=header or [],
        http_port=http, timeout=timeout, call_timeout=call_timeout, env_file=env_file, command=command or [],
    )  # fmt: skip
    if status := _run(guard_command.run(options)):
        raise typer.Exit(status)


@policies.command("check")
def check_policy(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The policy, TOML.")],
    tool: Annotated[str, typer.Argument(metavar="TOOL", help="The tool's name.")],
    arguments: Annotated[str, typer.Argument(metavar="JSON", help="The call's arguments, an object.")] = "{}",
    *,
    server: Annotated[str, typer.Option(help="The server's name.")] = "",
    trusted: Annotated[bool, typer.Option("--trusted", help="The server's annotations are believed.")] = False,
    annotations: Annotated[str | None, typer.Option(metavar="JSON", help="What the server says of the tool.")] = None,
) -> None:
    """Explain which rule decides about a call. Exit status: 0 allow, 3 ask, 4 deny."""
    from agent_sse.policy_check import explain_check, parse_object

    hints = parse_object(annotations, "the annotations") if annotations is not None else None
    lines, status = explain_check(file, tool, arguments, server=server, annotations=hints, trusted=trusted)
    print("\n".join(lines))
    if status:
        raise typer.Exit(status)


@app.command()
def audit(
    session: SessionArgument,
    *,
    after: Annotated[str, typer.Option(help="Only entries after this id.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON for each entry.")] = False,
) -> None:
    """Print who decided what in a session, when, and on which parameters; the oldest first."""
    from agent_sse import audit_lines

    _run(audit_lines.run(_settings(), session, after=after, as_json=as_json))
