"""The same exchange for asyncio: one connection, on which the commands of all requests follow each other without waiting.

Replies come in the order of the commands, so each is handed to who has waited longest. A request that gave up leaves its place in that
order, and its reply is dropped.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Self, cast

import hiredis

from bandit.errors import DependencyUnavailableError
from serving.redis_io.address import Address
from serving.redis_io.admission import Place
from serving.redis_io.async_admission import AsyncTurns
from serving.redis_io.breaker import CircuitBreaker
from serving.redis_io.unavailable import Unavailable
from serving.redis_io.wire import LEFT_ALONE, MORE, check_greeting, share_of_failure, turned_away


class AsyncWire:
    """An exchange for one event loop. At most `in_flight` requests have their turn at once; others wait for theirs."""

    def __init__(self, address: Address, breaker: CircuitBreaker, *, in_flight: int, patience: float) -> None:
        """Nothing is connected before the first exchange. `patience`: seconds that Redis may take for one exchange."""
        self._address, self._breaker, self._patience = address, breaker, patience
        self._turns = AsyncTurns(in_flight, lambda: breaker.turns_away)
        self._connecting = asyncio.Lock()
        self._line: _Line | None = None

    def turn(self, until: float, deadline: float) -> AsyncTurn:
        """As `Wire.turn`, for `async with`."""
        return AsyncTurn(self._turns, self._exchange, until, deadline)

    async def _exchange(self, place: Place, commands: bytes, replies: int, deadline: float) -> list[Any]:
        if place is not Place.TURN:
            raise turned_away(self._address, self._breaker, place)
        if not self._breaker.allows():
            raise self._address.away(LEFT_ALONE)
        line, started = self._line, time.monotonic()
        try:
            async with asyncio.timeout(min(deadline - started, self._patience)):
                if line is None or line.closed:
                    line = await self._connected()
                found: list[Any] = await line.send(commands, replies)
        except OSError as error:  # a TimeoutError is one too
            self._breaker.failed(share_of_failure(error, time.monotonic() - started, self._patience))
            if self._line is line:
                self.close()
            raise self._address.away(error if str(error) else "it did not answer in time") from error
        self._breaker.succeeded()
        return found

    def close(self) -> None:
        """Close the connection; who still waits on it fails at once."""
        if self._line is not None:
            self._line.close()
            self._line = None

    async def _connected(self) -> _Line:
        async with self._connecting:
            if self._line is None or self._line.closed:
                loop = asyncio.get_running_loop()
                _, line = await loop.create_connection(_Line, self._address.host, self._address.port, ssl=self._address.tls)
                self._line = line
                if self._address.greetings:
                    check_greeting(await line.send(self._address.greeting, self._address.greetings))
            return self._line


class AsyncTurn:
    """From `async with` to its end, as `Turn`."""

    __slots__ = ("_deadline", "_exchange", "_place", "_turns", "_until")

    def __init__(self, turns: AsyncTurns, exchange: Callable[..., Awaitable[list[Any]]], until: float, deadline: float) -> None:
        """See `AsyncWire.turn`."""
        self._turns, self._exchange, self._until, self._deadline = turns, exchange, until, deadline

    async def __aenter__(self) -> Self:
        """Wait."""
        self._place = await self._turns.take(self._until, self._deadline)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """The next one's turn."""
        self._turns.give_back(self._place)

    async def exchange(self, commands: Sequence[bytes], deadline: float) -> Sequence[Any]:
        """As `Turn.exchange`."""
        try:
            return await self._exchange(self._place, b"".join(commands), len(commands), deadline)
        except DependencyUnavailableError as error:
            return [Unavailable(error)] * len(commands)


class _Line(asyncio.Protocol):
    """One connection: who waits for how many replies, in the order of what was sent."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader(notEnoughData=MORE)
        self._waiting: deque[tuple[asyncio.Future[list[Any]], int]] = deque()
        self._found: list[Any] = []
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to write to."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name

    def send(self, commands: bytes, replies: int) -> asyncio.Future[list[Any]]:
        """Write, and promise the replies."""
        promise: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._waiting.append((promise, replies))
        self._transport.write(commands)
        return promise

    def data_received(self, data: bytes) -> None:
        """Hand complete replies to those who wait."""
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not MORE:
                self._found.append(reply)
                promise, replies = self._waiting[0]
                if len(self._found) == replies:
                    self._waiting.popleft()
                    if not promise.done():
                        promise.set_result(self._found)
                    self._found = []
        except (hiredis.ProtocolError, IndexError):
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        """Tell everybody who waits."""
        self.closed = True
        while self._waiting:
            promise, _ = self._waiting.popleft()
            if not promise.done():
                promise.set_exception(error or ConnectionResetError("the connection to Redis was closed"))
                promise.exception()  # who gave up does not ask any more, and asyncio would complain

    def close(self) -> None:
        """Close it now, whatever waits to be sent."""
        self._transport.abort()
        self.connection_lost(None)
