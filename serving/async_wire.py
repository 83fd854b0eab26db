"""The same exchange for asyncio: one connection, on which the commands of all requests follow each other without waiting.

Replies come in the order of the commands, so each is handed to who has waited longest. A request that gave up leaves its place in that
order, and its reply is dropped.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any, cast

import hiredis

from bandit.errors import DependencyAwayError
from serving.address import Address
from serving.breaker import CircuitBreaker
from serving.wire import LEFT_ALONE, MORE, check_greeting


class AsyncWire:
    """An exchange for one event loop. At most `in_flight` requests wait for Redis at once; others wait for them, until their deadline."""

    def __init__(self, address: Address, breaker: CircuitBreaker, *, in_flight: int, patience: float) -> None:
        """Nothing is connected before the first exchange. `patience`: seconds that Redis may take, once it is a caller's turn."""
        self._address, self._breaker, self._patience = address, breaker, patience
        self._free = asyncio.Semaphore(in_flight)
        self._connecting = asyncio.Lock()
        self._line: _Line | None = None

    async def exchange(self, commands: bytes, replies: int, deadline: float) -> list[Any]:
        """As `Wire.exchange`, with the same errors."""
        if self._breaker.turns_away:
            raise self._address.away(LEFT_ALONE)
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await self._free.acquire()
        except TimeoutError as error:
            raise self._address.away("too many requests before this one") from error
        line = self._line
        try:
            if not self._breaker.allows():
                raise self._address.away(LEFT_ALONE)
            async with asyncio.timeout(min(deadline - time.monotonic(), self._patience)):
                if line is None or line.closed:
                    line = await self._connected()
                found: list[Any] = await line.send(commands, replies)
        except DependencyAwayError:
            raise
        except OSError as error:  # a TimeoutError is one too
            self._breaker.failed()
            if self._line is line:
                self.close()
            raise self._address.away(error if str(error) else "it did not answer in time") from error
        finally:
            self._free.release()
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
