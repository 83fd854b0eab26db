"""The batch side's connection to Redis."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from bandit.errors import DependencyAwayError

TIMEOUT_SECONDS = 10.0


def connect(url: str, *, timeout: float = TIMEOUT_SECONDS) -> redis.Redis:
    """A client that never sends a command twice by itself (redis-py does, up to three times) and never waits for ever.

    Raises: DependencyAwayError when nothing answers.
    """
    client = redis.Redis.from_url(url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=Retry(NoBackoff(), 0))
    with translated(url):
        client.ping()
    return client


@contextlib.contextmanager
def translated(url: str) -> Iterator[None]:
    """Whatever Redis refuses inside the `with` block is our DependencyAwayError, which names the server and its answer."""
    try:
        yield
    except redis.RedisError as error:
        raise DependencyAwayError("Redis", without_password(url), str(error)) from error


def without_password(url: str) -> str:
    """The URL as it may be shown."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=host))
