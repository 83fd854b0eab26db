"""One connection of an event loop, on which the commands of all requests follow each other without waiting.

Replies come in the order of the commands, so each is handed to the request that has waited longest. A request that gave up leaves its
place in that order, and its reply is dropped.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any, Self, cast

import hiredis
import redis
from redis.asyncio.connection import AbstractConnection
from redis.connection import DefaultParser

from serving.redis_io.bounded import LEADS_ELSEWHERE, MORE, next_reply
from serving.redis_io.breaker import CircuitBreaker, was_patient

_GRACE_SECONDS = 0.005  # for Redis' answer, when the loop itself was late
_ON_TIME_SECONDS = 0.001


class Line(asyncio.Protocol):
    """Commands out, replies in; whatever fails here is told to the breaker once, however many wait."""

    def __init__(self, connection: AbstractConnection, breaker: CircuitBreaker, patience: float) -> None:
        """Take over a connection that redis-py has made and greeted; `connection` is kept, for its end would close it."""
        self._connection, self._breaker, self._patience = connection, breaker, patience
        self._reader = hiredis.Reader(notEnoughData=MORE, replyError=DefaultParser.parse_error)
        self._waiting: deque[tuple[asyncio.Future[list[Any]], int]] = deque()
        self._replies: list[Any] = []
        self._blamed = False
        self._sound = True
        self._end: AsyncGenerator[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._transport = cast("asyncio.Transport", connection._writer.transport)  # noqa: SLF001 -- its socket and TLS are all we want of it
        self._transport.set_protocol(self)

    @classmethod
    async def over(cls, connection: AbstractConnection, breaker: CircuitBreaker, patience: float) -> Self:
        """A line that closes with its loop."""
        line = cls(connection, breaker, patience)
        line._end = end = line._closing()
        await anext(end)
        return line

    @property
    def usable(self) -> bool:
        """Whether requests may still be sent on it."""
        return self._sound and not self._transport.is_closing()

    async def _closing(self) -> AsyncGenerator[None]:
        """`asyncio.run` ends the generators of its loop, and nothing else of what belongs to it."""
        try:
            yield
        finally:
            self.close()

    async def send(self, commands: bytes, replies: int, until: float) -> list[Any]:
        """Write, and wait for the replies. Raises: redis.RedisError."""
        promise: asyncio.Future[list[Any]] = self._loop.create_future()
        self._waiting.append((promise, replies))
        asked = time.monotonic()
        self._transport.write(commands)
        timer = self._loop.call_later(max(until - asked, 0.0), self._expire, promise, asked, until)
        try:
            return await promise
        finally:
            timer.cancel()

    def _expire(self, promise: asyncio.Future[list[Any]], asked: float, until: float, grace: float = _GRACE_SECONDS) -> None:
        if promise.done():
            return
        if grace and time.monotonic() - until > _ON_TIME_SECONDS:  # the loop was late: the answer may be here, and not be read yet
            self._loop.call_later(grace, self._expire, promise, asked, until, 0.0)
            return
        if was_patient(asked, until, self._patience):
            self._blame()
            self._sound = False  # others on it may still be answered
        promise.set_exception(redis.TimeoutError("it did not answer in time"))

    def data_received(self, data: bytes) -> None:
        """Hand complete replies to those who wait."""
        self._reader.feed(data)
        try:
            while (reply := next_reply(self._reader)) is not MORE:
                if isinstance(reply, LEADS_ELSEWHERE):
                    self._sound = False
                self._replies.append(reply)
                promise, replies = self._waiting[0]
                if len(self._replies) == replies:
                    self._waiting.popleft()
                    if not promise.done():
                        promise.set_result(self._replies)
                    self._replies = []
        except (IndexError, redis.RedisError) as error:
            self.close(error)
        if not self._sound and not self._waiting:
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        """Tell everybody who waits."""
        self._connection._writer = self._connection._reader = None  # noqa: SLF001 -- closed, and redis-py shall not complain
        self._sound = False
        waiting = [promise for promise, _ in self._waiting if not promise.done()]
        self._waiting.clear()
        if waiting:
            self._blame()
        for promise in waiting:
            promise.set_exception(redis.ConnectionError(str(error or "Redis closed the connection")))

    def close(self, error: Exception | None = None) -> None:
        """Close it now, whatever waits to be sent."""
        self._transport.abort()
        self.connection_lost(error)

    def _blame(self) -> None:
        if not self._blamed:
            self._breaker.failed()
        self._blamed = True
