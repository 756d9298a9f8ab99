"""`agent-sse guard`: a transparent MCP server in front of another one, which asks before a tool runs.

Works on JSON-RPC messages, not on typed models, so that what it does not know passes unchanged.
"""
