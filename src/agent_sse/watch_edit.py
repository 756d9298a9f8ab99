"""Parameters edited in the user's editor: a private file of JSON, and what of it differs as a JSON Merge Patch.

The file holds what the request shows and nothing else; what steers a terminal stands in it in JSON's own escapes.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import json
import math
import os
import shlex
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent_sse import events, merge_patch
from agent_sse.errors import InvalidEvent
from agent_sse.terminal import escape
from agent_sse.watch_session import Edit
from agent_sse.watch_view import pretty

MOST_BYTES = 2 * 1024 * 1024  # of the file that is read back
KILL_AFTER = 2.0  # s; an editor that does not end when it is told to


class NotEdited(Exception):
    """There is no edit; the message says why, and what to do."""


def json_text(value: object) -> str:
    """Return a value as indented JSON that a terminal can show, and that is read back to an equal value."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    shown = (char if char == "\n" or escape(char) == char else json.dumps(char)[1:-1] for char in text)
    return "".join(shown) + "\n"


def edit_of(before: Mapping[str, Any], text: str) -> Edit | None:
    """Return what the text changes, None for nothing. Raises :class:`NotEdited` for what cannot be sent."""
    try:
        after = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse, parse_float=_float)
    except (ValueError, RecursionError) as error:
        raise NotEdited(f"not edited: this is no JSON: {error}") from None
    if not isinstance(after, dict):
        raise NotEdited("not edited: the parameters are a JSON object, {…}")
    try:
        patch = difference(before, after)
        if not patch:
            return None
        if not _same(merge_patch.apply(before, patch), after):
            raise NotEdited("not edited: an edit cannot write null into an object; leave the name out instead")
    except InvalidEvent as error:
        raise NotEdited(f"not edited: {error}") from None
    lines = list(difflib.unified_diff(pretty(before), pretty(after), lineterm="", n=10**6))[3:]
    return Edit(patch, lines)


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON Merge Patch (https://www.rfc-editor.org/rfc/rfc7396) from one object to another.

    A null that ``after`` has where ``before`` has another value cannot be said in one: it would remove the name.
    """
    patch: dict[str, Any] = {name: None for name in before if name not in after}
    for name, value in after.items():
        if name not in before:
            patch[name] = value
        elif not _same(before[name], value):
            old = before[name]
            patch[name] = difference(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return patch


def _same(one: object, other: object) -> bool:
    return events.canonical(one) == events.canonical(other)  # in Python 1 == True == 1.0


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name occurs twice in one object")
    return made


def _refuse(word: str) -> Any:
    raise ValueError(f"{word} is no number")


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large a number")
    return number


async def edited_text(text: str) -> str:
    """Let the user edit a text in ``$VISUAL``, ``$EDITOR`` or ``vi``, and return it. The file is the user's alone.

    Raises :class:`NotEdited` when the editor cannot be started or fails; cancelling ends it.
    """
    folder = Path(tempfile.mkdtemp(prefix="agent-sse-"))  # mode 0700
    path = folder / "parameters.json"
    try:
        path.touch(mode=0o600, exist_ok=False)
        path.write_text(text, encoding="utf-8")
        await _run_editor(path)
        data = _read(path)
    except OSError as error:
        raise NotEdited(f"not edited: {error.strerror or error}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if len(data) > MOST_BYTES:
        raise NotEdited(f"not edited: the file is larger than {MOST_BYTES} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise NotEdited("not edited: the file is not UTF-8") from None


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MOST_BYTES + 1)


async def _run_editor(path: Path) -> None:
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    try:
        words = shlex.split(command)
        process = await asyncio.create_subprocess_exec(*words, str(path))
    except (OSError, ValueError, TypeError):
        raise NotEdited(f"not edited: the editor {command!r} cannot be started; set EDITOR") from None
    try:
        status = await process.wait()
    finally:
        if process.returncode is None:
            process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), KILL_AFTER)
            if process.returncode is None:
                process.kill()
                await process.wait()
    if status != 0:
        raise NotEdited(f"not edited: the editor ended with status {status}")
