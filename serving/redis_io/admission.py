"""Turns: so many callers at once, the others in the order in which they came, and those who would be too late turned away early.

Hundreds of threads that wake at one moment take the interpreter from each other for longer than all that they have to do takes. So callers
give up at moments of their own, and whoever must do without a turn does so one at a time.
"""

from __future__ import annotations

import enum
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable

# Between two who give up, about what one of them then needs for its answer. Those who are served follow each other hardly closer than that,
# so the queue moves on in time for all who can be served.
APART_SECONDS = 0.0004


class Place(enum.Enum):
    """What came of waiting."""

    TURN = enum.auto()
    AWAY = enum.auto()  # do without a turn, alone
    HURRIED = enum.auto()  # the same, and others would be late if it took long
    LATE = enum.auto()  # there was not even time to be alone


class Turns:
    """At most so many callers at once; for all threads.

    Whoever is at the end of the queue gives up first, early enough for those before it to do so one after the other until their time.
    """

    def __init__(self, most: int, closed: Callable[[], bool]) -> None:
        """So many turns, and none while it is `closed`."""
        self._free, self._closed = most, closed
        self._lock = threading.Lock()
        self._waiting: OrderedDict[_Waiter, None] = OrderedDict()
        self._called = 0  # of those who waited
        self._gave_up: deque[_Waiter] = deque()  # they wait to be alone
        self._somebody_away = False

    def take(self, until: float, deadline: float) -> Place:
        """Wait for a turn until then at most, and if there is none, to be alone; to be given back.

        Both are on the clock of time.monotonic, and a caller that gets neither is let go at its deadline.
        """
        with self._lock:
            if self._free and not self._closed():
                self._free -= 1
                return Place.TURN
            waiter = _Waiter(until, deadline, self._called + len(self._waiting))
            self._waiting[waiter] = None
        try:
            while waiter.place is None:
                now = time.monotonic()
                if not (left := self._limit(waiter) - now) > 0.0:
                    self._give_up(waiter, now)
                    left = max(deadline - now, 0.0)
                if waiter.place is None:
                    waiter.called.acquire(timeout=left)
        except BaseException:  # an interrupt while waiting
            with self._lock:
                if waiter.place is None:
                    self._let_go(waiter, Place.LATE)
            self.give_back(waiter.place or Place.LATE)
            raise
        return waiter.place

    def give_back(self, place: Place) -> None:
        """The next one's turn."""
        if place is Place.LATE:
            return
        with self._lock:
            if place is Place.TURN:
                self._free += 1
            else:
                self._somebody_away = False
            if self._waiting or self._gave_up:
                self._call(time.monotonic(), alone=place is not Place.TURN)

    def _limit(self, waiter: _Waiter) -> float:
        """When it gives up, as the queue stands."""
        return 0.0 if self._closed() else waiter.until - APART_SECONDS * (waiter.number - self._called)

    def _give_up(self, waiter: _Waiter, now: float) -> None:
        with self._lock:
            if waiter.place is not None:
                return
            if not self._somebody_away:
                self._let_be_alone(waiter, now)
            elif now >= waiter.deadline or self._hurried(waiter, now):
                self._let_go(waiter, Place.LATE)
            elif waiter in self._waiting:
                del self._waiting[waiter]
                self._gave_up.append(waiter)

    def _call(self, now: float, *, alone: bool) -> None:
        """Those whose turn it is, and the next one to be alone."""
        while self._free and self._waiting and not self._closed():
            self._free -= 1
            self._called += 1
            self._let_go(next(iter(self._waiting)), Place.TURN)
        while self._gave_up and not self._somebody_away:
            if (waiter := self._gave_up.popleft()).place is None:
                self._let_be_alone(waiter, now)
        if not self._waiting or self._somebody_away:
            return
        if self._closed():
            self._let_be_alone(next(iter(self._waiting)), now)
        elif alone:  # somewhat before its time, for to be woken twice is half the work
            last = next(reversed(self._waiting))
            if self._limit(last) - now < 0.5 * (last.deadline - last.until):
                self._let_be_alone(last, now)

    def _hurried(self, waiter: _Waiter, now: float) -> bool:
        """Whether those who will have to be alone after this one would be late if it took its time."""
        others = len(self._waiting) + len(self._gave_up) if self._closed() else waiter.number - self._called
        return waiter.deadline - now < APART_SECONDS * others

    def _let_be_alone(self, waiter: _Waiter, now: float) -> None:
        self._somebody_away = True
        self._let_go(waiter, Place.HURRIED if self._hurried(waiter, now) else Place.AWAY)

    def _let_go(self, waiter: _Waiter, place: Place) -> None:
        self._waiting.pop(waiter, None)
        waiter.place = place
        waiter.called.release()


class _Waiter:
    """A caller in the queue, the `number`-th that ever was, and what it was let go with."""

    __slots__ = ("called", "deadline", "number", "place", "until")

    def __init__(self, until: float, deadline: float, number: int) -> None:
        self.until, self.deadline, self.number = until, deadline, number
        self.place: Place | None = None
        self.called = threading.Lock()
        self.called.acquire()
