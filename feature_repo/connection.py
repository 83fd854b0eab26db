"""Connections to Redis: nothing is sent twice, nothing waits for ever, no password is shown."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import redis
from redis.asyncio.connection import Connection as AsyncConnection
from redis.asyncio.connection import SSLConnection as AsyncSSLConnection
from redis.asyncio.connection import UnixDomainSocketConnection as AsyncUnixConnection
from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.retry import Retry

from bandit.errors import DependencyUnavailableError, InvalidValueError
from bandit.settings.address import Kind, RedisAddress

TIMEOUT_SECONDS = 10.0
_CLASSES: dict[Kind, type] = {"tcp": Connection, "tls": SSLConnection, "unix": UnixDomainSocketConnection}
_ASYNC_CLASSES: dict[Kind, type] = {"tcp": AsyncConnection, "tls": AsyncSSLConnection, "unix": AsyncUnixConnection}


def client_of(url: str, *, timeout: float) -> redis.Redis:
    """A client without redis-py's own retries: they would make one lost reply two entries, and sleep for seconds in between.

    Raises: InvalidValueError for a URL that `RedisAddress` cannot read.
    """
    address = _address_of(url)
    timeouts = {"socket_timeout": timeout, "socket_connect_timeout": timeout, "retry": Retry(NoBackoff(), 0)}
    pool = redis.ConnectionPool(connection_class=_CLASSES[address.kind], **timeouts, **address.options)
    return redis.Redis.from_pool(pool)


def connection_of(url: str, kinds: Mapping[Kind, type], *, asynchronous: bool = False) -> Any:  # noqa: ANN401 -- one of the kinds
    """A single connection, not yet connected, which never tries again by itself.

    Args:
        url: as `RedisAddress` reads it.
        kinds: what to make in place of redis-py's own classes.
        asynchronous: from `redis.asyncio`.

    Raises: InvalidValueError for a URL that `RedisAddress` cannot read.
    """
    address = _address_of(url)
    kind = ((_ASYNC_CLASSES if asynchronous else _CLASSES) | dict(kinds))[address.kind]
    return kind(**address.options)


def _address_of(url: str) -> RedisAddress:
    try:
        return RedisAddress.of(url)
    except ValueError as error:
        raise InvalidValueError("redis_url", expected="an address of Redis", received=str(error)) from None


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
