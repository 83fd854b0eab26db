"""Admission: a bounded number of callers at once, the others in the order in which they came, and those too late turned away early.

If hundreds of waiting threads time out at once, they contend for the interpreter's lock. So they time out one by one, and a caller that
is turned away is alone with its answer.

An exception may hit a caller anywhere, also between being admitted and being told so. So what counts as a place in use is a ticket that
somebody still has: a place whose ticket is gone is free, however it went.
"""

from __future__ import annotations

import enum
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable

from serving.after_fork import renew_after_fork

# Two callers give up this far apart: one of them then needs about as long for its answer. Served callers follow each other hardly faster,
# so the queue moves on in time for every caller that can be served.
APART_SECONDS = 0.0004


class Place(enum.Enum):
    """What came of waiting."""

    ADMITTED = enum.auto()
    ALONE = enum.auto()  # turned away, alone
    HURRIED = enum.auto()  # the same, and others would be late if it took long
    LATE = enum.auto()  # there was not even time to be alone


class Ticket:
    """A caller: it waits for a turn until `until`, and must be let go at `deadline`; `place` is what came of waiting."""

    __slots__ = ("__weakref__", "called", "deadline", "number", "place", "until")

    def __init__(self, until: float, deadline: float) -> None:
        """Both on the clock of time.monotonic."""
        self.until, self.deadline, self.number = until, deadline, 0
        self.place: Place | None = None
        self.called = threading.Lock()
        self.called.acquire()


class Admission:
    """At most so many callers at once; for all threads.

    The caller at the end of the queue gives up first, early enough for those before it to do so one after the other until their time.
    """

    def __init__(self, most: int, closed: Callable[[], bool]) -> None:
        """So many turns, and none while it is `closed`."""
        self._most, self._closed = most, closed
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Nobody is here: the callers were threads of the parent."""
        self._lock = threading.Lock()
        self._admitted: dict[int, weakref.ref[Ticket]] = {}
        self._alone: weakref.ref[Ticket] | None = None
        self._waiting: OrderedDict[Ticket, None] = OrderedDict()
        self._called = 0  # of those who waited
        self._gave_up: deque[Ticket] = deque()  # they wait to be alone

    @property
    def free(self) -> int:
        """Turns that nobody has."""
        if len(self._admitted) >= self._most:
            for key, ticket in list(self._admitted.items()):
                if ticket() is None:
                    self._admitted.pop(key, None)
        return self._most - len(self._admitted)

    def take(self, ticket: Ticket) -> None:
        """Wait for a turn, and if there is none, to be alone; to be given back. A caller that gets neither is let go at its deadline."""
        try:
            with self._lock:
                if self.free and not self._closed():
                    self._admit(ticket)
                    return
                ticket.number = self._called + len(self._waiting)
                self._waiting[ticket] = None
            while ticket.place is None:
                now = time.monotonic()
                if not (left := self._limit(ticket) - now) > 0.0:
                    self._give_up(ticket, now)
                    left = max(ticket.deadline - now, 0.0)
                if ticket.place is None:
                    ticket.called.acquire(timeout=left)
        except BaseException:  # an interrupt while waiting
            self.give_back(ticket)
            raise

    def give_back(self, ticket: Ticket) -> None:
        """The next one's turn. To give back what is not had, or twice, changes nothing."""
        with self._lock:
            self._waiting.pop(ticket, None)
            was_alone = self._alone is not None and self._alone() is ticket
            if was_alone:
                self._alone = None
            self._admitted.pop(id(ticket), None)
            ticket.place = ticket.place or Place.LATE
            if self._waiting or self._gave_up:
                self._call(time.monotonic(), alone=was_alone)

    @property
    def _somebody_alone(self) -> bool:
        return self._alone is not None and self._alone() is not None

    def _limit(self, ticket: Ticket) -> float:
        """When it gives up, as the queue stands."""
        return 0.0 if self._closed() else ticket.until - APART_SECONDS * (ticket.number - self._called)

    def _give_up(self, ticket: Ticket, now: float) -> None:
        with self._lock:
            if ticket.place is not None:
                return
            if not self._somebody_alone:
                self._let_be_alone(ticket, now)
            elif now >= ticket.deadline or self._hurried(ticket, now):
                self._let_go(ticket, Place.LATE)
            elif ticket in self._waiting:
                del self._waiting[ticket]
                self._gave_up.append(ticket)

    def _call(self, now: float, *, alone: bool) -> None:
        """Those whose turn it is, and the next one to be alone."""
        while self._waiting and not self._closed() and self.free:
            self._called += 1
            self._admit(next(iter(self._waiting)))
        while self._gave_up and not self._somebody_alone:
            if (ticket := self._gave_up.popleft()).place is None:
                self._let_be_alone(ticket, now)
        if not self._waiting or self._somebody_alone:
            return
        if self._closed():
            self._let_be_alone(next(iter(self._waiting)), now)
        elif alone:  # somewhat before its time, for to be woken twice is half the work
            last = next(reversed(self._waiting))
            if self._limit(last) - now < 0.5 * (last.deadline - last.until):
                self._let_be_alone(last, now)

    def _hurried(self, ticket: Ticket, now: float) -> bool:
        """Whether those who will have to be alone after this one would be late if it took its time."""
        others = len(self._waiting) + len(self._gave_up) if self._closed() else ticket.number - self._called
        return ticket.deadline - now < APART_SECONDS * others

    def _let_be_alone(self, ticket: Ticket, now: float) -> None:
        self._alone = weakref.ref(ticket)
        self._let_go(ticket, Place.HURRIED if self._hurried(ticket, now) else Place.ALONE)

    def _admit(self, ticket: Ticket) -> None:
        self._admitted[id(ticket)] = weakref.ref(ticket)
        self._let_go(ticket, Place.ADMITTED)

    def _let_go(self, ticket: Ticket, place: Place) -> None:
        self._waiting.pop(ticket, None)
        ticket.place = place
        ticket.called.release()
