"""``python -m agent_sse`` is the ``agent-sse`` command."""

from agent_sse.cli import main

if __name__ == "__main__":
    main()
