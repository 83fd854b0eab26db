"""Exchanges of all threads with Redis: connections that are kept, and what happens when one fails."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import redis

from bandit.errors import DeadlineExceededError, DependencyUnavailableError
from feature_repo.connection import away
from serving.after_fork import renew_after_fork
from serving.redis_io.admission import Admission, Place, Ticket
from serving.redis_io.bounded import Bounded, bounded_connection
from serving.redis_io.breaker import CircuitBreaker, was_patient
from serving.redis_io.unavailable import Unavailable

LEFT_ALONE = "it failed several times, and is left alone for a while"


class Connections:
    """Up to `most` connections to one Redis for all threads; a caller that finds them in use waits for its turn."""

    def __init__(self, url: str, breaker: CircuitBreaker, *, most: int, patience: float) -> None:
        """Nothing is connected before the first exchange. `patience`: seconds that Redis may take for one exchange."""
        self._url, self._breaker, self._patience = url, breaker, patience
        self._admission = Admission(most, lambda: breaker.turns_away)
        self._idle: deque[Bounded] = deque()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """The idle connections are the parent's: redis-py closes this process' copies and tells the server nothing."""
        self._idle = deque()

    def turn(self, until: float, deadline: float) -> Turn:
        """One caller's turn, for its exchanges and what it makes of them; `with` waits for it as `Admission.take` does."""
        return Turn(self._admission, self._exchange, Ticket(until, deadline))

    def close(self) -> None:
        """Close the idle connections."""
        while (connection := self._kept()) is not None:
            connection.disconnect()  # type: ignore[attr-defined]  # redis-py's

    def _kept(self) -> Bounded | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _ready(self, now: float) -> Bounded:
        """A connection that is kept and has not been closed by the server, or a new one."""
        while (connection := self._kept()) is not None and connection.is_stale(now):
            connection.disconnect()  # type: ignore[attr-defined]
        return connection or bounded_connection(self._url)

    def _exchange(self, place: Place, commands: bytes, replies: int, deadline: float, meanwhile: Callable[[], None] | None) -> list[Any]:
        check_admitted(self._url, self._breaker, place)
        started = time.monotonic()
        until = min(deadline, started + self._patience)
        connection = self._ready(started)
        try:
            answers = connection.exchange(commands, replies, until, meanwhile)
        except (redis.RedisError, OSError) as error:
            connection.disconnect()  # type: ignore[attr-defined]
            self.close()  # the others are likely to be dead too
            asked = min(connection.sent_at, until) if connection.sent_at >= started else until
            if not isinstance(error, redis.TimeoutError | TimeoutError) or was_patient(asked, until, self._patience):
                self._breaker.failed(error)
            raise away(self._url, error) from error
        except BaseException:  # an interrupt in the middle: a late reply would be taken for the next one's
            connection.disconnect()  # type: ignore[attr-defined]
            raise
        self._breaker.succeeded()
        if connection.outdated:  # a failover behind one name: it leads elsewhere now
            connection.disconnect()  # type: ignore[attr-defined]
            self.close()
        else:
            self._idle.append(connection)
        return answers


class Turn:
    """From `with` to its end. A caller that was turned away gets Unavailable from every exchange, at once."""

    __slots__ = ("_admission", "_exchange", "_ticket")

    def __init__(self, admission: Admission, exchange: Callable[..., list[Any]], ticket: Ticket) -> None:
        """See `Connections.turn`."""
        self._admission, self._exchange, self._ticket = admission, exchange, ticket

    def __enter__(self) -> Self:
        """Wait."""
        self._admission.take(self._ticket)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """The next one's turn."""
        self._admission.give_back(self._ticket)

    def exchange(self, commands: Sequence[bytes], deadline: float, meanwhile: Callable[[], None] | None = None) -> Sequence[Any]:
        """Send packed commands and return their replies; one that Redis refused has its `redis.ResponseError` for a reply.

        Args:
            commands: packed by hiredis.
            deadline: on the clock of time.monotonic.
            meanwhile: work to do while Redis does its own; left undone when nothing could be sent.

        Returns: Unavailable for each when there was no answer; what was sent may then have been carried out or not.
        """
        try:
            return self._exchange(self._ticket.place, b"".join(commands), len(commands), deadline, meanwhile) if commands else ()
        except DependencyUnavailableError as error:
            return [Unavailable(error)] * len(commands)


def check_admitted(url: str, breaker: CircuitBreaker, place: Place | None) -> None:
    """Raises: DependencyUnavailableError for a caller that has no turn, or while Redis is left alone."""
    if place is Place.ADMITTED:
        if not breaker.allows():
            raise away(url, LEFT_ALONE)
        return
    if place is not Place.ALONE:
        raise away(url, "too many requests before this one", DeadlineExceededError)
    raise away(url, LEFT_ALONE if breaker.is_open else "no connection came free in time")
