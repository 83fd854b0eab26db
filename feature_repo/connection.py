"""Connections to Redis: nothing is sent twice, nothing waits for ever, no password is shown."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from bandit.errors import DependencyUnavailableError

TIMEOUT_SECONDS = 10.0


def client_of(url: str, *, timeout: float) -> redis.Redis:
    """A client without redis-py's own retries: they would make one lost reply two entries, and sleep for seconds in between."""
    return redis.Redis.from_url(url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=Retry(NoBackoff(), 0))


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
