"""Publishing an event that its client names by a key: sent again, and through whichever process, it is stored once.

What remembers the keys is Redis, in the same step that appends the event.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

from agent_sse import scripts
from agent_sse.decisions import sha256
from agent_sse.errors import IdempotencyConflict, PublishTimeout, RedisUnavailable
from agent_sse.store import Publish, Store


async def publish_once(store: Store, event: Publish, *, key: str, subject: str, said: object) -> str:
    """Publish and return the event's id, ``"<ms>-<seq>"``; that of the first time when the key was used before.

    ``key`` is the client's own name for the event among those of ``subject`` in this session; ``said`` is the event as
    the client sent it, before anything was filled in. Raises :class:`IdempotencyConflict` for a key of another event,
    :class:`PublishTimeout`, :class:`~agent_sse.errors.RedisRefused`.
    """
    loop = asyncio.get_running_loop()
    seconds = store.settings.publish_timeout
    until, failures = loop.time() + seconds, 0
    reply: Any = None
    while True:
        try:
            reply = await store.run(
                scripts.PUBLISH_ONCE, event.session_id, event.payload, sha256([subject, key]), sha256(said), event.kind,
                event.call_id, "1" if event.terminal else "0",
            )  # fmt: skip
            break
        except RedisUnavailable:  # a second try is harmless: the key is known by then
            failures += 1
            delay = random.uniform(0, min(1.0, 0.02 * 2**failures))
            if loop.time() + delay >= until:
                raise PublishTimeout(seconds, sent=True) from None
            await asyncio.sleep(delay)
    if reply[0] == b"conflict":
        raise IdempotencyConflict("the idempotency key was used for another event; take a new one")
    return str(reply[0].decode())
