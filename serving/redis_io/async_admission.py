"""Admission for asyncio: as `serving.redis_io.admission`, where a loop does one thing after the other by itself."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable

from serving.redis_io.admission import APART_SECONDS, Place


class AsyncAdmission:
    """At most so many requests at once; for one event loop."""

    def __init__(self, most: int, closed: Callable[[], bool]) -> None:
        """So many turns, and none while it is `closed`."""
        self.free, self._closed = most, closed
        self._waiting: OrderedDict[asyncio.Future[Place], float] = OrderedDict()  # until when
        self._called = 0  # of those who waited

    async def take(self, until: float, deadline: float) -> Place:
        """Wait as `Admission.take` does."""
        if self._closed():
            return Place.ALONE
        if self.free:
            self.free -= 1
            return Place.ADMITTED
        called: asyncio.Future[Place] = asyncio.get_running_loop().create_future()
        number = self._called + len(self._waiting)
        self._waiting[called] = until
        try:
            self._give_up(called, number)
            place = await called
        except BaseException:  # cancelled, by a time limit of the caller's say
            self._waiting.pop(called, None)
            if called.done() and not called.cancelled():
                self.give_back(called.result())
            raise
        if place is Place.ALONE and time.monotonic() > next(iter(self._waiting.values()), until) + 0.75 * (deadline - until):
            return Place.LATE  # the loop is behind: it is past the time of others, who were not even told so
        return place

    def give_back(self, place: Place) -> None:
        """The next one's turn."""
        if place is not Place.ADMITTED:
            return
        self.free += 1
        while self._waiting and (self.free or self._closed()):
            called, _ = self._waiting.popitem(last=False)
            if called.done():  # cancelled, and not yet told so
                continue
            closed = self._closed()
            self.free -= not closed
            self._called += 1
            called.set_result(Place.ALONE if closed else Place.ADMITTED)

    def _give_up(self, called: asyncio.Future[Place], number: int) -> None:
        """When it is time to, as the queue stands then."""
        if called not in self._waiting or called.done():
            return
        left = self._waiting[called] - APART_SECONDS * (number - self._called) - time.monotonic()
        if left > 0.0:
            asyncio.get_running_loop().call_later(left, self._give_up, called, number)
        else:
            del self._waiting[called]
            called.set_result(Place.ALONE)
