"""Exchanges of event loops with Redis: one connection for each loop, which belongs to it and ends with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import redis
from redis.asyncio.connection import Connection as AsyncConnection
from redis.asyncio.connection import SSLConnection as AsyncSSLConnection

from bandit.errors import DependencyUnavailableError
from bandit.settings.address import Kind
from feature_repo.connection import away, connection_of
from serving.after_fork import renew_after_fork
from serving.redis_io.admission import Place
from serving.redis_io.async_admission import AsyncAdmission
from serving.redis_io.breaker import CircuitBreaker, was_patient
from serving.redis_io.connections import check_admitted
from serving.redis_io.line import Line
from serving.redis_io.resolver import RESOLVER
from serving.redis_io.unavailable import Unavailable

_LEAST_SECONDS = 0.005  # a Redis that is well answers in that time: a loop that is behind its deadlines still asks


class _Resolved(AsyncConnection):  # type: ignore[misc]  # redis-py is untyped to us, here and below
    """The name is resolved within the deadline, as for threads. TLS goes on to ask for the certificate of the name."""

    deadline: float
    host: str

    async def _connect(self) -> None:
        error = OSError("the name has no addresses")
        for address in await RESOLVER.addresses_async(self.host, self.port, self.deadline):
            self._address = address
            try:
                return await super()._connect()  # type: ignore[no-any-return]
            except OSError as refused:
                error = refused
        raise error

    def _connection_arguments(self) -> dict[str, Any]:
        arguments = dict(super()._connection_arguments())
        return arguments | {"host": self._address} | ({"server_hostname": self.host} if "ssl" in arguments else {})


class _ResolvedTls(_Resolved, AsyncSSLConnection):  # type: ignore[misc]
    """rediss://."""


_KINDS: dict[Kind, type] = {"tcp": _Resolved, "tls": _ResolvedTls}


class AsyncConnections:
    """As `Connections`; at most `in_flight` requests of a loop have their turn at once."""

    def __init__(self, url: str, breaker: CircuitBreaker, *, in_flight: int, patience: float) -> None:
        """Nothing is connected before the first exchange. `patience`: seconds that Redis may take for one exchange."""
        self._url, self._breaker, self._in_flight, self._patience = url, breaker, in_flight, patience
        self._loops: dict[asyncio.AbstractEventLoop, _LoopConnection] = {}
        self._parents: list[object] = []
        renew_after_fork(self)

    def after_fork(self) -> None:
        """The loops are the parent's. What belongs to them is kept as it is: to close it would reach into the parent's own selector."""
        self._parents.append(self._loops)
        self._loops = {}

    def turn(self, until: float, deadline: float) -> AsyncTurn:
        """As `Connections.turn`, for `async with`."""
        loop = asyncio.get_running_loop()
        connection = self._loops.get(loop)
        if connection is None:
            for ended in [each for each in list(self._loops) if each.is_closed()]:
                self._loops.pop(ended, None)
            admission = AsyncAdmission(self._in_flight, lambda: self._breaker.turns_away)
            connection = self._loops[loop] = _LoopConnection(self._url, self._breaker, admission, self._patience)
        return AsyncTurn(connection, until, deadline)

    def close(self) -> None:
        """Close the connection of the running loop; requests that still wait on it fail at once."""
        connection = self._loops.pop(asyncio.get_running_loop(), None)
        if connection is not None:
            connection.close()


class _LoopConnection:
    """One loop's turns and its line."""

    def __init__(self, url: str, breaker: CircuitBreaker, admission: AsyncAdmission, patience: float) -> None:
        self.admission = admission
        self._url, self._breaker, self._patience = url, breaker, patience
        self._line: Line | None = None
        self._opening: asyncio.Task[Line] | None = None

    async def exchange(self, place: Place, commands: bytes, replies: int, deadline: float) -> list[Any]:
        """Raises: DependencyUnavailableError."""
        check_admitted(self._url, self._breaker, place)
        now = time.monotonic()
        until = min(max(deadline, now + _LEAST_SECONDS), now + self._patience)
        try:
            line = self._line if self._line is not None and self._line.usable else await self._opened(until)
            answers = await line.send(commands, replies, until)
        except (redis.RedisError, OSError) as error:
            raise away(self._url, error) from error
        self._breaker.succeeded()
        return answers

    def close(self) -> None:
        """Close the line."""
        if self._line is not None:
            self._line.close()

    async def _opened(self, until: float) -> Line:
        """A new line; a request that gives up leaves the opening of it to the others."""
        if self._opening is None:
            self._opening = asyncio.get_running_loop().create_task(self._open())
            self._opening.add_done_callback(self._open_ended)
        opening = self._opening
        await asyncio.wait({opening}, timeout=max(until - time.monotonic(), 0.0))
        if not opening.done():
            raise redis.TimeoutError("no connection in time")
        return opening.result()

    async def _open(self) -> Line:
        asked, connection = time.monotonic(), connection_of(self._url, _KINDS, asynchronous=True)
        connection.deadline = asked + self._patience
        try:
            async with asyncio.timeout(self._patience):
                await connection.connect()
        except (redis.RedisError, OSError) as error:
            await connection.disconnect(nowait=True)
            timed_out = isinstance(error, redis.TimeoutError | TimeoutError)
            if not timed_out or was_patient(asked, asked + self._patience, self._patience):
                self._breaker.failed(error)
            raise
        except asyncio.CancelledError:
            await connection.disconnect(nowait=True)
            raise
        self._line = await Line.over(connection, self._breaker, self._patience)
        return self._line

    def _open_ended(self, opening: asyncio.Task[Line]) -> None:
        self._opening = None
        if not opening.cancelled():
            opening.exception()  # nobody may be left to ask for it, and asyncio would complain


class AsyncTurn:
    """From `async with` to its end, as `Turn`."""

    __slots__ = ("_connection", "_deadline", "_place", "_until")

    def __init__(self, connection: _LoopConnection, until: float, deadline: float) -> None:
        """See `AsyncConnections.turn`."""
        self._connection, self._until, self._deadline = connection, until, deadline

    async def __aenter__(self) -> Self:
        """Wait."""
        self._place = await self._connection.admission.take(self._until, self._deadline)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """The next one's turn."""
        self._connection.admission.give_back(self._place)

    async def exchange(self, commands: Sequence[bytes], deadline: float) -> Sequence[Any]:
        """As `Turn.exchange`."""
        try:
            return await self._connection.exchange(self._place, b"".join(commands), len(commands), deadline)
        except DependencyUnavailableError as error:
            return [Unavailable(error)] * len(commands)
