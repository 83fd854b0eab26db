"""Turns: so many at once, in order, and who cannot be served is turned away early and one at a time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter

import pytest

from serving.redis_io.admission import Admission, Place, Ticket
from serving.redis_io.async_admission import AsyncAdmission

CALLERS = 60


class Crowd:
    """Callers who arrive one after the other, and what came of each."""

    def __init__(self, turns: Admission, *, until: float, deadline: float, hold: float = 0.0) -> None:
        self.turns, self.hold = turns, hold
        self.until, self.deadline = time.monotonic() + until, time.monotonic() + deadline
        self.places: dict[int, Place] = {}  # in the order in which they were let go
        self.alone, self.most_alone = 0, 0
        self.last = 0.0
        self._lock = threading.Lock()
        self.threads = [threading.Thread(target=self._call, args=(number,)) for number in range(CALLERS)]
        for waiting, thread in enumerate(self.threads):
            thread.start()
            while len(turns._waiting) + len(self.places) <= waiting and thread.is_alive():
                time.sleep(0.0001)

    def _call(self, number: int) -> None:
        ticket = Ticket(self.until, self.deadline)
        self.turns.take(ticket)
        place = ticket.place
        assert place is not None
        alone = place in {Place.ALONE, Place.HURRIED}
        with self._lock:
            self.places[number] = place
            self.alone += alone
            self.most_alone = max(self.most_alone, self.alone)
            self.last = time.monotonic()
        time.sleep(self.hold)
        with self._lock:
            self.alone -= alone
        self.turns.give_back(ticket)

    def left(self) -> Counter[Place]:
        for thread in self.threads:
            thread.join()
        return Counter(self.places.values())


def taken(turns: Admission) -> Ticket:
    ticket = Ticket(0.0, 0.0)
    turns.take(ticket)
    return ticket


def test_turns_come_in_order_to_all_who_can_be_served() -> None:
    turns = Admission(1, lambda: False)
    held = taken(turns)
    crowd = Crowd(turns, until=2.0, deadline=2.5, hold=0.002)
    turns.give_back(held)
    assert crowd.left() == {Place.ADMITTED: CALLERS}
    assert list(crowd.places) == sorted(crowd.places)


def test_who_cannot_be_served_gives_up_from_the_end_and_alone() -> None:
    turns = Admission(1, lambda: False)
    held = taken(turns)
    assert held.place is Place.ADMITTED
    crowd = Crowd(turns, until=0.5, deadline=1.0, hold=0.001)
    assert set(crowd.left()) == {Place.ALONE}
    assert crowd.most_alone == 1
    assert next(iter(crowd.places)) == CALLERS - 1
    assert list(crowd.places)[-1] < CALLERS // 2
    assert crowd.last < crowd.deadline


def test_nobody_waits_past_the_deadline_for_one_who_takes_its_time() -> None:
    turns = Admission(1, lambda: False)
    held = taken(turns)
    alone = Ticket(0.0, time.monotonic() + 1.0)
    turns.take(alone)
    assert (held.place, alone.place) == (Place.ADMITTED, Place.ALONE)
    crowd = Crowd(turns, until=0.2, deadline=0.3)
    assert crowd.left() == {Place.LATE: CALLERS}
    assert crowd.last < crowd.deadline + 0.2


def test_those_behind_are_told_to_hurry() -> None:
    """Each takes far longer than there is time for all."""
    turns = Admission(1, lambda: False)
    held = taken(turns)
    crowd = Crowd(turns, until=0.2, deadline=0.3, hold=0.02)
    left = crowd.left()
    turns.give_back(held)
    assert left[Place.ALONE] >= 1
    assert left[Place.ALONE] <= 0.3 / 0.02
    assert crowd.last < crowd.deadline + 0.2


def test_all_who_wait_are_let_go_when_it_closes_and_served_when_it_opens() -> None:
    closed = False
    turns = Admission(1, lambda: closed)
    held = taken(turns)
    crowd = Crowd(turns, until=30.0, deadline=30.0)
    closed = True
    turns.give_back(held)
    assert set(crowd.left()) <= {Place.ALONE, Place.HURRIED}
    assert crowd.most_alone == 1
    closed = False
    assert taken(turns).place is Place.ADMITTED


def test_asyncio_serves_in_order_all_who_can_be_served() -> None:
    async def run() -> list[int]:
        turns, order = AsyncAdmission(1, lambda: False), list[int]()
        now = time.monotonic()

        async def call(number: int) -> None:
            place = await turns.take(now + 2.0, now + 2.5)
            assert place is Place.ADMITTED
            order.append(number)
            await asyncio.sleep(0.002)
            turns.give_back(place)

        await asyncio.gather(*(call(number) for number in range(CALLERS)))
        return order

    assert asyncio.run(run()) == list(range(CALLERS))


def test_asyncio_gives_up_from_the_end() -> None:
    async def run() -> list[int]:
        turns, order = AsyncAdmission(1, lambda: False), list[int]()
        now = time.monotonic()
        assert await turns.take(now, now) is Place.ADMITTED

        async def call(number: int) -> None:
            assert await turns.take(now + 0.5, now + 1.0) is Place.ALONE
            order.append(number)

        await asyncio.gather(*(call(number) for number in range(CALLERS)))
        assert time.monotonic() < now + 1.0
        return order

    assert asyncio.run(run()) == list(range(CALLERS))[::-1]


@pytest.mark.parametrize("called", [False, True])
def test_a_request_that_is_cancelled_takes_no_turn_with_it(*, called: bool) -> None:
    async def run() -> None:
        turns, now = AsyncAdmission(1, lambda: False), time.monotonic()
        held = await turns.take(now, now)
        waiting = asyncio.create_task(turns.take(now + 5.0, now + 5.0))
        await asyncio.sleep(0)
        if called:
            turns.give_back(held)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        if not called:
            turns.give_back(held)
        assert await turns.take(now, now) is Place.ADMITTED

    asyncio.run(run())


def test_asyncio_lets_all_go_when_it_closes() -> None:
    async def run() -> set[Place]:
        closed = False
        turns, now = AsyncAdmission(1, lambda: closed), time.monotonic()
        held = await turns.take(now, now)
        waiting = [asyncio.create_task(turns.take(now + 30.0, now + 30.0)) for _ in range(CALLERS)]
        await asyncio.sleep(0)
        closed = True
        turns.give_back(held)
        places = set(await asyncio.gather(*waiting))
        closed = False
        assert await turns.take(now, now) is Place.ADMITTED
        return places

    assert asyncio.run(run()) == {Place.ALONE}


def test_a_turn_whose_ticket_is_gone_is_free_again() -> None:
    """An interrupt may hit its holder before it can give it back."""
    turns = Admission(1, lambda: False)
    taken(turns)
    held = taken(turns)
    assert (held.place, turns.free) == (Place.ADMITTED, 0)
    turns.give_back(held)
    turns.give_back(held)
    assert turns.free == 1


def test_asyncio_skips_waiters_that_are_cancelled_in_the_same_turn_of_the_loop() -> None:
    async def run() -> None:
        turns, far = AsyncAdmission(1, lambda: False), time.monotonic() + 60.0
        first = await turns.take(far, far)
        cancelled, waiting = (asyncio.create_task(turns.take(far, far)) for _ in range(2))
        await asyncio.sleep(0)
        cancelled.cancel()
        turns.give_back(first)
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        turns.give_back(await waiting)
        assert turns.free == 1

    asyncio.run(run())
