"""An existing FastAPI application with agent-sse in it: ``uvicorn --app-dir examples mounted:app``."""

from contextlib import suppress
from typing import Annotated

from fastapi import BackgroundTasks, Depends, FastAPI, Header, HTTPException

from agent_sse import PermissionDenied, SimpleNotifier, create_router
from agent_sse.auth import Principal

TEAMS = {"build-1": {"alice", "bob"}}  # here the application knows who may see a session, not the token


def from_our_gateway(x_gateway: Annotated[str, Header()] = "") -> None:
    if x_gateway != "internal":
        raise HTTPException(403, "this is for requests that come through the gateway")


def authorize(principal: Principal, session_id: str) -> bool | None:
    return True if principal.subject in TEAMS.get(session_id, ()) else None  # None: let token and owner decide


async def deploy(version: str) -> None:
    async with SimpleNotifier.from_env() as notifier:  # the same settings as the router's
        call = notifier.tool_call("build-1", "deploy", {"version": version}, risk_level="high", require_permission=True)
        with suppress(PermissionDenied):  # the call has told everybody
            async with call:  # runs only when approved
                call.result = f"{version} is live"


app = FastAPI()
app.include_router(create_router(authorize=authorize), prefix="/internal", dependencies=[Depends(from_our_gateway)])


@app.post("/deploy/{version}", status_code=202)
def start(version: str, tasks: BackgroundTasks) -> None:
    tasks.add_task(deploy, version)
