"""Live status and human approval around MCP tool calls: for a client, inside a server, or as a guard in front of one.

Needs the extra ``agent-sse[mcp]``. Never imported by the service: `import mcp` patches uvicorn's signal handling.
"""
