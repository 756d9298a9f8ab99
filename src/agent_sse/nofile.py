"""How many file descriptors this process may have, and how many connections that makes.

A process that runs out of them can accept nobody, reach no Redis and open no log: asyncio then writes a traceback for
each attempt, uvloop closes whoever connects without a word. So connections are refused before it comes to that.
"""

from __future__ import annotations

import contextlib
import resource

BURST = 2048  # connections that one step of the loop may accept before anybody can refuse one: uvicorn's backlog
OWN = 256  # Redis, logs, listening sockets, what the embedded Valkey and an embedding application have open
RESERVE = BURST + OWN

SEARCH_TO = 1 << 20  # where to look for the limit of a system that names none


def limit() -> int | None:
    """Return how many descriptors this process may have open; None for any number."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def room() -> int | None:
    """Return how many connections that leaves room for; None for any number.

    A reserve is kept for everything else: :data:`RESERVE`, of a low limit a quarter.
    """
    most = limit()
    return None if most is None else most - min(RESERVE, most // 4)


def raise_limit() -> None:
    """Raise the soft limit to the hard one, or as far as the system goes.

    macOS names no hard limit, and refuses more than ``kern.maxfilesperproc``, which is found by trying:
    https://developer.apple.com/library/archive/documentation/System/Conceptual/ManPages_iPhoneOS/man2/setrlimit.2.html
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft in (hard, resource.RLIM_INFINITY) or _try(hard, hard):
        return
    low, high = soft, SEARCH_TO if hard == resource.RLIM_INFINITY else min(hard, SEARCH_TO)
    while high - low > 1:
        middle = (low + high) // 2
        if _try(middle, hard):
            low = middle
        else:
            high = middle


def _try(soft: int, hard: int) -> bool:
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return True
    return False


def shortage(streams: int) -> str | None:
    """Return what to do, in one line, when there is no room for so many streams; None when there is."""
    space = room()
    if space is None or space >= streams:
        return None
    needed = streams + RESERVE
    return (
        f"only {limit()} files may be open, which is room for {space} connections and not for AGENT_SSE_MAX_STREAMS="
        f"{streams}: allow {needed} (ulimit -n {needed}, LimitNOFILE={needed}, docker run --ulimit nofile={needed}), "
        f"or set AGENT_SSE_MAX_STREAMS={space}"
    )
