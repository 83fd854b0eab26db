"""Connections to Redis: nothing is sent twice, nothing waits for ever, no password is shown."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import redis
from redis.asyncio.connection import Connection as AsyncConnection
from redis.asyncio.connection import parse_url as async_parse_url
from redis.backoff import NoBackoff
from redis.connection import Connection, parse_url
from redis.retry import Retry

from bandit.errors import DependencyUnavailableError

TIMEOUT_SECONDS = 10.0
_OWN_OPTIONS = frozenset(
    ("socket_timeout", "socket_connect_timeout", "timeout", "retry_on_timeout", "retry_on_error", "max_connections", "protocol")
) | {"health_check_interval", "decode_responses"}


def client_of(url: str, *, timeout: float) -> redis.Redis:
    """A client without redis-py's own retries: they would make one lost reply two entries, and sleep for seconds in between."""
    return redis.Redis.from_url(url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=Retry(NoBackoff(), 0))


def connection_of(url: str, kinds: Mapping[type, type], *, asynchronous: bool = False) -> Any:  # noqa: ANN401 -- one of the kinds
    """A single connection, not yet connected, which never tries again by itself.

    Args:
        url: `redis://`, `rediss://` or `unix://`, as redis-py reads it; its timeouts and retries are left out, for ours hold.
        kinds: what to make in place of redis-py's TCP, TLS and unix connections.
        asynchronous: from `redis.asyncio`.

    Raises: ValueError for another scheme.
    """
    options: dict[str, Any] = dict((async_parse_url if asynchronous else parse_url)(url))
    kind = options.pop("connection_class", AsyncConnection if asynchronous else Connection)
    return kinds.get(kind, kind)(**{name: value for name, value in options.items() if name not in _OWN_OPTIONS})


def connect(url: str, *, timeout: float = TIMEOUT_SECONDS) -> redis.Redis:
    """A client of a Redis that answers.

    Raises: DependencyUnavailableError when nothing answers.
    """
    client = client_of(url, timeout=timeout)
    with translated(url):
        client.ping()
    return client


@contextlib.contextmanager
def translated(url: str) -> Iterator[None]:
    """Whatever Redis refuses inside the `with` block is our DependencyUnavailableError, which names the server and its answer."""
    try:
        yield
    except redis.RedisError as error:
        raise away(url, error) from error


def away(
    url: str, error: Exception | str, kind: type[DependencyUnavailableError] = DependencyUnavailableError
) -> DependencyUnavailableError:
    """Our error for a Redis that does not answer."""
    return kind("Redis", without_password(url), str(error))


def without_password(url: str) -> str:
    """The URL as it may be shown."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=host))
