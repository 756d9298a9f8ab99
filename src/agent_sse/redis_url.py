"""Where Redis is for whoever only uses it: where the settings say, else where the service's embedded Valkey runs."""

from __future__ import annotations

from agent_sse import embedded
from agent_sse.errors import ConfigurationError
from agent_sse.settings import RedisSettings
from agent_sse.state_dir import state_dir

NO_REDIS = "no Redis: set AGENT_SSE_REDIS_URL, or start `agent-sse serve` (its embedded Valkey is used then)"


async def find_redis(settings: RedisSettings) -> str:
    """Return the configured Redis' URL, else that of the embedded Valkey that runs for this user.

    Raises :class:`ConfigurationError` when neither is there.
    """
    if settings.redis_url:
        return settings.redis_url
    url = await embedded.attach_url(state_dir(settings.state_dir))
    if url is None:
        raise ConfigurationError(NO_REDIS)
    return url
