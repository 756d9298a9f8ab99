"""Tool calls that run as tasks: asked about as any other, and followed until the task has ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import mcp_parts
from mcp_parts import RawHost, journal, until_journal

NAME = "simulate-research-query"


async def begin(host: RawHost) -> str:
    """Call the reference server's tool that only runs as a task, and return the task's id."""
    await host.initialize(elicitation={}, sampling={})
    params = {"name": NAME, "arguments": {"topic": "x"}, "task": {"ttl": 60000}}
    await host.send("tools/call", params, id=1)
    answer = await host.answer(1)
    task: str = answer["result"]["task"]["taskId"]
    return task


def happened(folder: Path) -> list[Any]:
    return [row[1] for row in journal(folder) if row[0] == NAME]


async def test_guard_reports_a_task_with_the_result_that_the_host_fetches(folder: Path) -> None:
    """The call goes on after its answer, and ends with what `tasks/result` brings the host."""
    async with RawHost(mcp_parts.guard_command(folder, command=mcp_parts.everything("stdio"))) as host:
        task = await begin(host)
        assert "finished" not in happened(folder)
        await host.send("tasks/result", {"taskId": task}, id=2)
        answer = await host.answer(2)
        assert "content" in answer["result"]
        await until_journal(folder, NAME, "finished")
    assert ["tool", "pending", "executing", "finished"] == happened(folder)


async def test_guard_asks_for_the_result_of_a_task_that_the_host_has_forgotten(folder: Path) -> None:
    """The browser hears of the end even when the host never asks; what the guard asks itself the host does not see."""
    async with RawHost(mcp_parts.guard_command(folder, command=mcp_parts.everything("stdio"))) as host:
        await begin(host)
        await until_journal(folder, NAME, "finished")
        assert [] == [m for m in host.received if str(m.get("id")).startswith("agent-sse")]
    assert "finished" == happened(folder)[-1]


@pytest.mark.parametrize("by", ["tasks/cancel", "the host leaving"])
async def test_guard_reports_a_task_that_ends_without_a_result(folder: Path, by: str) -> None:
    """A task that is cancelled has failed, and one whose host leaves is cancelled."""
    async with RawHost(mcp_parts.guard_command(folder, command=mcp_parts.everything("stdio"))) as host:
        task = await begin(host)
        if by == "tasks/cancel":
            await host.send("tasks/cancel", {"taskId": task}, id=2)
            assert "cancelled" == (await host.answer(2))["result"]["status"]
            await until_journal(folder, NAME, "failed")
        else:
            await host.close()
    assert happened(folder)[-1] in {"failed", "cancelled"}
