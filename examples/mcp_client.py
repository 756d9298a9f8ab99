"""An agent's MCP client with agent-sse around it: a Git server whose calls are shown live, and asked about.

pip install 'agent-sse[demo]'
agent-sse serve --dev                                  # in another shell; its page shows the session
python examples/mcp_client.py s1 path/to/repository
"""

import asyncio
import sys

from mcp import Client, StdioServerParameters

from agent_sse import SimpleNotifier
from agent_sse.mcp import guard_client


async def main(session_id: str, repository: str) -> None:
    server = StdioServerParameters(command=sys.executable, args=["-m", "mcp_server_git", "--repository", repository])
    # The settings are those of the service: AGENT_SSE_REDIS_URL, or else the Valkey that it has started.
    async with SimpleNotifier.from_env() as notifier, Client(server) as client:
        await notifier.open_session(session_id, owner="alice")
        # Without a policy: what a trusted server says only reads runs at once, the rest is asked about.
        tools = guard_client(client, notifier, session_id=session_id, server="git", trusted=True)

        status = await tools.call_tool("git_status", {"repo_path": repository})
        print(status.content[0].text)

        # Waits for the answer. The branch may have another name then: what the user edits is what runs.
        made = await tools.call_tool("git_create_branch", {"repo_path": repository, "branch_name": "agents-branch"})
        # A denial is a result like any other, with the user's reason in it, for the model to read.
        print("not done:" if made.is_error else "done:", made.content[0].text)


asyncio.run(main(*sys.argv[1:3]))
