"""Commands to Redis and their replies: sent once, answered before a deadline.

redis-py's client takes some 45 microseconds more for a command, and its timeout holds for each read from the socket, not for the whole
exchange. hiredis packs and parses here as it does there.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import hiredis

from bandit.errors import DeadlineExceededError, DependencyUnavailableError
from serving.redis_io.address import Address
from serving.redis_io.admission import Place, Turns
from serving.redis_io.breaker import CircuitBreaker
from serving.redis_io.unavailable import Unavailable

_READ_AT_ONCE = 1 << 16
_LEAST_SECONDS = 0.001  # a reply that is here already is taken even after the deadline
LEFT_ALONE = "it failed several times, and is left alone for a while"
MORE: Any = object()  # what the parser says when a reply is not complete yet


class Wire:
    """Up to `connections` connections to one Redis for all threads; who finds none free waits for its turn."""

    def __init__(self, address: Address, breaker: CircuitBreaker, *, connections: int, patience: float) -> None:
        """Nothing is connected before the first exchange. `patience`: seconds that Redis may take for one exchange."""
        self._address, self._breaker, self._patience = address, breaker, patience
        self._turns = Turns(connections, lambda: breaker.turns_away)
        self._idle: deque[_Line] = deque()

    def turn(self, until: float, deadline: float) -> Turn:
        """One caller's turn, for its exchanges and what it makes of them; `with` waits for it as `Turns.take` does."""
        return Turn(self._turns, self._exchange, until, deadline)

    def exchange(self, command: bytes, deadline: float) -> Any:  # noqa: ANN401 -- Redis' answer
        """A turn for a single command, see `Turn.exchange`."""
        with self.turn(deadline, deadline) as turn:
            return turn.exchange([command], deadline)[0]

    def close(self) -> None:
        """Close the idle connections."""
        while (line := self._idle_line()) is not None:
            line.close()

    def _idle_line(self) -> _Line | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _exchange(self, place: Place, commands: bytes, replies: int, deadline: float, meanwhile: Callable[[], None] | None) -> list[Any]:
        if place is not Place.TURN:
            raise turned_away(self._address, self._breaker, place)
        if not self._breaker.allows():
            raise self._address.away(LEFT_ALONE)
        started = time.monotonic()
        deadline = min(deadline, started + self._patience)
        line = None
        try:
            line = self._idle_line() or _Line(self._address, deadline)
            found = line.exchange(commands, replies, deadline, meanwhile)
        except OSError as error:
            if line is not None:
                line.close()  # a late reply would be taken for the next one's
            self.close()  # the others are likely to be dead too
            self._breaker.failed(share_of_failure(error, time.monotonic() - started, self._patience))
            raise self._address.away(error) from error
        except BaseException:  # an interrupt in the middle: likewise
            if line is not None:
                line.close()
            raise
        self._breaker.succeeded()
        self._idle.append(line)
        return found


class Turn:
    """From `with` to its end. Who was turned away has every exchange fail at once."""

    __slots__ = ("_deadline", "_exchange", "_place", "_turns", "_until")

    def __init__(self, turns: Turns, exchange: Callable[..., list[Any]], until: float, deadline: float) -> None:
        """See `Wire.turn`."""
        self._turns, self._exchange, self._until, self._deadline = turns, exchange, until, deadline

    def __enter__(self) -> Self:
        """Wait."""
        self._place = self._turns.take(self._until, self._deadline)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """The next one's turn."""
        self._turns.give_back(self._place)

    def exchange(self, commands: Sequence[bytes], deadline: float, meanwhile: Callable[[], None] | None = None) -> Sequence[Any]:
        """Send packed commands and return their replies; one that Redis refused has its `hiredis.ReplyError` for a reply.

        Args:
            commands: packed by hiredis.
            deadline: on the clock of time.monotonic.
            meanwhile: work to do while Redis does its own; left undone when nothing could be sent.

        Returns: Unavailable for each when there was no answer; what was sent may then have been carried out or not.
        """
        try:
            return self._exchange(self._place, b"".join(commands), len(commands), deadline, meanwhile) if commands else ()
        except DependencyUnavailableError as error:
            return [Unavailable(error)] * len(commands)


class _Line:
    """One connection."""

    def __init__(self, address: Address, deadline: float) -> None:
        """Connect and greet. Raises: OSError."""
        self._socket: socket.socket = socket.create_connection((address.host, address.port), timeout=_left(deadline))
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if address.tls is not None:
                self._socket.settimeout(_left(deadline))
                self._socket = address.tls.wrap_socket(self._socket, server_hostname=address.host)
            self._reader = hiredis.Reader(notEnoughData=MORE)
            check_greeting(self.exchange(address.greeting, address.greetings, deadline) if address.greetings else [])
        except BaseException:
            self._socket.close()
            raise

    def exchange(self, commands: bytes, replies: int, deadline: float, meanwhile: Callable[[], None] | None = None) -> list[Any]:
        """Send, and read that many replies. Raises: OSError."""
        self._socket.settimeout(_left(deadline))
        self._socket.sendall(commands)
        if meanwhile is not None:
            meanwhile()
        found: list[Any] = []
        while len(found) < replies:
            try:
                reply = self._reader.gets()
            except hiredis.ProtocolError as error:
                raise ConnectionError(f"not an answer of Redis: {error}") from error
            if reply is not MORE:
                found.append(reply)
                continue
            self._socket.settimeout(_left(deadline))
            data = self._socket.recv(_READ_AT_ONCE)
            if not data:
                raise ConnectionResetError("Redis closed the connection")
            self._reader.feed(data)
        return found

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def __del__(self) -> None:
        """Close what nobody closed, without the interpreter's complaint, as redis-py does."""
        if hasattr(self, "_socket"):
            self._socket.close()


def check_greeting(replies: list[Any]) -> None:
    """Raises: ConnectionError for a password or a database that Redis refused."""
    for reply in replies:
        if isinstance(reply, hiredis.ReplyError):
            raise ConnectionError(str(reply))


def turned_away(address: Address, breaker: CircuitBreaker, place: Place) -> DependencyUnavailableError:
    """Why somebody has no turn."""
    if place is not Place.AWAY:
        return address.away("too many requests before this one", DeadlineExceededError)
    return address.away(LEFT_ALONE if breaker.is_open else "no connection came free in time")


def share_of_failure(error: OSError, waited: float, patience: float) -> float:
    """What the breaker is told: who waited for less than the patience, because its own time was up, knows less about Redis."""
    return min(waited / patience, 1.0) if isinstance(error, TimeoutError) else 1.0


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), _LEAST_SECONDS)
