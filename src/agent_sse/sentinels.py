"""The sentinels that know which server is the primary: their URL, and asking them, each for a bounded time.

They are asked by redis-py's pool at every connect, so after a failover a new connection leads to the new primary.
https://redis.io/docs/latest/develop/reference/sentinel-clients/
"""

from __future__ import annotations

import asyncio
import re
from typing import Any, NamedTuple, cast
from urllib.parse import parse_qsl, unquote, urlencode

from redis import exceptions as failure
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff

from agent_sse.errors import ConfigurationError

SCHEMES = {"redis+sentinel": "redis", "rediss+sentinel": "rediss"}
PORT = 26379
FORM = "redis+sentinel://user:password@host:26379,host:26379/service/0 (rediss+sentinel:// for TLS)"
OPTIONS = frozenset({"db", "client_name", "socket_keepalive", "socket_connect_timeout"})
OF_SENTINELS = {"sentinel_username": "username", "sentinel_password": "password"}

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+(?:%\w+)?)\]|([^\s:@\[\]]+))(?::([0-9]{1,5}))?")


class SentinelURL(NamedTuple):
    """What a URL says. ``primary`` and ``sentinel`` are redis-py's arguments for connections to either."""

    addresses: list[tuple[str, int]]
    service: str
    primary: dict[str, Any]
    sentinel: dict[str, Any]

    @classmethod
    def parse(cls, url: str) -> SentinelURL:
        """Read ``redis[s]+sentinel://[user:password@]host[:port][,…]/service[/db][?…]``. Raises ConfigurationError."""
        scheme, _, rest = url.partition("://")
        rest, _, query = rest.partition("?")
        authority, _, path = rest.partition("/")
        credentials, at, hosts = authority.rpartition("@")
        service, _, database = path.partition("/")
        if not service:
            raise _unusable("it names no service")
        if "#" in url or not re.fullmatch(r"[0-9]{0,5}", database):
            raise _unusable("after the service there may be the number of a database, and nothing else")
        options = _options(query)
        tls = SCHEMES[scheme.lower()]
        user = credentials + at
        try:
            primary = dict(parse_url(f"{tls}://{user}host/{database}?{urlencode(options.primary)}"))
        except ValueError:
            raise _unusable("an option's value, or the password, is not written rightly") from None
        of_tls = {name: value for name, value in primary.items() if name.startswith("ssl_")}
        if of_tls and tls == "redis":
            raise _unusable("options of TLS need rediss+sentinel://")
        for name in ("host", "connection_class"):
            primary.pop(name, None)
        if tls == "rediss":
            primary["ssl"] = of_tls["ssl"] = True
        return cls(_addresses(hosts), unquote(service), primary, {**of_tls, **options.sentinel})


class _Options(NamedTuple):
    primary: dict[str, str]
    sentinel: dict[str, str]


def _options(query: str) -> _Options:
    given = dict(parse_qsl(query, keep_blank_values=True))
    sentinel = {OF_SENTINELS[name]: given.pop(name) for name in OF_SENTINELS.keys() & given.keys()}
    if any(name not in OPTIONS and not name.startswith("ssl_") for name in given):
        known = ", ".join(sorted(OPTIONS | OF_SENTINELS.keys()))
        raise _unusable(f"it has an option that is none of {known}, ssl_…")
    return _Options(given, sentinel)


def _addresses(hosts: str) -> list[tuple[str, int]]:
    addresses = []
    for text in hosts.split(","):
        found = _HOST.fullmatch(text)
        port = int(found[3] or PORT) if found else 0
        if found is None or not 0 < port < 65536:
            raise _unusable("a sentinel's host or port is missing or wrong")
        addresses.append((found[1] or unquote(found[2]), port))
    return addresses


def _unusable(why: str) -> ConfigurationError:
    # No part of the URL: whatever was taken for a host or an option may be a part of the password.
    return ConfigurationError(
        f"AGENT_SSE_REDIS_URL is not usable: {why}; write {FORM}, and / # ? @ in a password as %2F %23 %3F %40"
    )


def is_sentinel_url(url: str) -> bool:
    """Tell whether a URL names sentinels rather than a server."""
    return url.partition("://")[0].lower() in SCHEMES


class Sentinels(Sentinel):
    """redis-py's sentinels, which together take less than ``timeout`` seconds to name the primary."""

    def __init__(self, url: SentinelURL, timeout: float, options: dict[str, Any]) -> None:
        kwargs = {**options, "retry": Retry(NoBackoff(), 0), **url.sentinel}
        super().__init__(url.addresses, sentinel_kwargs=kwargs)  # type: ignore[no-untyped-call]  # redis-py's
        # Equal shares, and not redis-py's socket_timeout, which bounds each step apart and swallows cancellations.
        self.share = timeout / (len(url.addresses) + 1)

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """Return the primary's host and port. Raises MasterNotFoundError; its cause is a refusal if all refuse."""
        reasons, refusals = [], []
        for sentinel in list(self.sentinels):
            kwargs = sentinel.connection_pool.connection_kwargs
            try:
                async with asyncio.timeout(self.share):
                    masters = cast(dict[str, dict[str, Any]], await sentinel.sentinel_masters())
            except (failure.RedisError, OSError) as error:
                why = str(error) or f"no answer within {self.share:g} s"
                if isinstance(error, failure.AuthenticationError | failure.NoPermissionError):
                    refusals.append(error)
            else:
                state = masters.get(service_name)
                if state is not None and self.check_master_state(state, service_name):
                    # Who answers is asked first the next time.
                    self.sentinels.sort(key=lambda other: other is not sentinel)
                    return str(state["ip"]), int(state["port"])
                why = "does not know it" if state is None else "takes it for dead"
            reasons.append(f"{kwargs['host']}:{kwargs['port']}: {why}")
        cause = refusals[0] if len(refusals) == len(reasons) else None
        raise MasterNotFoundError(f"no primary of {service_name!r} ({'; '.join(reasons)})") from cause


def sentinel_pool(url: str, timeout: float, options: dict[str, Any]) -> SentinelConnectionPool:
    """Return what makes connections to the primary that sentinels name. Raises ConfigurationError.

    ``options`` are redis-py's for every connection, to the sentinels too. The pool's ``sentinel_manager`` holds
    connections of its own: close it.
    """
    parsed = SentinelURL.parse(url)
    try:
        sentinels = Sentinels(parsed, timeout, options)
        kwargs = {**options, "retry": Retry(NoBackoff(), 0), **parsed.primary}
        pool = SentinelConnectionPool(parsed.service, sentinels, **kwargs)
        pool.make_connection()
    except (TypeError, ValueError, failure.RedisError):
        raise _unusable("redis-py does not know one of its options, or not its value") from None
    return pool
