"""Serving's connection to Redis: nothing is sent twice, nothing waits past the deadline."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from bandit.errors import DependencyAwayError


def connect(url: str, *, timeout: float) -> redis.Redis:
    """A client without redis-py's own retries: they would make one lost reply two entries, and sleep for seconds in between."""
    return redis.Redis.from_url(url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=Retry(NoBackoff(), 0))


def away(url: str, error: Exception | str, kind: type[DependencyAwayError] = DependencyAwayError) -> DependencyAwayError:
    """Our error for a Redis that does not answer; the password stays out of it."""
    parts = urlsplit(url)
    return kind("Redis", urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])), str(error))
