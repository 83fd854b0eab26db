"""Turns: so many at once, in order, and who cannot be served is turned away early and one at a time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter

import pytest

from serving.redis_io.admission import Place, Turns
from serving.redis_io.async_admission import AsyncTurns

CALLERS = 60


class Crowd:
    """Callers who arrive one after the other, and what came of each."""

    def __init__(self, turns: Turns, *, until: float, deadline: float, hold: float = 0.0) -> None:
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
        place = self.turns.take(self.until, self.deadline)
        alone = place in {Place.AWAY, Place.HURRIED}
        with self._lock:
            self.places[number] = place
            self.alone += alone
            self.most_alone = max(self.most_alone, self.alone)
            self.last = time.monotonic()
        time.sleep(self.hold)
        with self._lock:
            self.alone -= alone
        self.turns.give_back(place)

    def left(self) -> Counter[Place]:
        for thread in self.threads:
            thread.join()
        return Counter(self.places.values())


def test_turns_come_in_order_to_all_who_can_be_served() -> None:
    turns = Turns(1, lambda: False)
    held = turns.take(0.0, 0.0)
    crowd = Crowd(turns, until=2.0, deadline=2.5, hold=0.002)
    turns.give_back(held)
    assert crowd.left() == {Place.TURN: CALLERS}
    assert list(crowd.places) == sorted(crowd.places)


def test_who_cannot_be_served_gives_up_from_the_end_and_alone() -> None:
    turns = Turns(1, lambda: False)
    assert turns.take(0.0, 0.0) is Place.TURN  # and it is never given back
    crowd = Crowd(turns, until=0.5, deadline=1.0, hold=0.001)
    assert set(crowd.left()) == {Place.AWAY}
    assert crowd.most_alone == 1
    assert next(iter(crowd.places)) == CALLERS - 1
    assert list(crowd.places)[-1] < CALLERS // 2
    assert crowd.last < crowd.deadline


def test_nobody_waits_past_the_deadline_for_one_who_takes_its_time() -> None:
    turns = Turns(1, lambda: False)
    turns.take(0.0, 0.0)
    assert turns.take(0.0, time.monotonic() + 1.0) is Place.AWAY  # and it is never given back
    crowd = Crowd(turns, until=0.2, deadline=0.3)
    assert crowd.left() == {Place.LATE: CALLERS}
    assert crowd.last < crowd.deadline + 0.2


def test_those_behind_are_told_to_hurry() -> None:
    """Each takes far longer than there is time for all."""
    turns = Turns(1, lambda: False)
    turns.take(0.0, 0.0)
    crowd = Crowd(turns, until=0.2, deadline=0.3, hold=0.02)
    left = crowd.left()
    assert left[Place.AWAY] >= 1
    assert left[Place.AWAY] <= 0.3 / 0.02
    assert crowd.last < crowd.deadline + 0.2


def test_all_who_wait_are_let_go_when_it_closes_and_served_when_it_opens() -> None:
    closed = False
    turns = Turns(1, lambda: closed)
    held = turns.take(0.0, 0.0)
    crowd = Crowd(turns, until=30.0, deadline=30.0)
    closed = True
    turns.give_back(held)
    assert set(crowd.left()) <= {Place.AWAY, Place.HURRIED}
    assert crowd.most_alone == 1
    closed = False
    assert turns.take(0.0, 0.0) is Place.TURN


def test_asyncio_serves_in_order_all_who_can_be_served() -> None:
    async def run() -> list[int]:
        turns, order = AsyncTurns(1, lambda: False), list[int]()
        now = time.monotonic()

        async def call(number: int) -> None:
            place = await turns.take(now + 2.0, now + 2.5)
            assert place is Place.TURN
            order.append(number)
            await asyncio.sleep(0.002)
            turns.give_back(place)

        await asyncio.gather(*(call(number) for number in range(CALLERS)))
        return order

    assert asyncio.run(run()) == list(range(CALLERS))


def test_asyncio_gives_up_from_the_end() -> None:
    async def run() -> list[int]:
        turns, order = AsyncTurns(1, lambda: False), list[int]()
        now = time.monotonic()
        assert await turns.take(now, now) is Place.TURN

        async def call(number: int) -> None:
            assert await turns.take(now + 0.5, now + 1.0) is Place.AWAY
            order.append(number)

        await asyncio.gather(*(call(number) for number in range(CALLERS)))
        assert time.monotonic() < now + 1.0
        return order

    assert asyncio.run(run()) == list(range(CALLERS))[::-1]


@pytest.mark.parametrize("called", [False, True])
def test_a_request_that_is_cancelled_takes_no_turn_with_it(*, called: bool) -> None:
    async def run() -> None:
        turns, now = AsyncTurns(1, lambda: False), time.monotonic()
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
        assert await turns.take(now, now) is Place.TURN

    asyncio.run(run())


def test_asyncio_lets_all_go_when_it_closes() -> None:
    async def run() -> set[Place]:
        closed = False
        turns, now = AsyncTurns(1, lambda: closed), time.monotonic()
        held = await turns.take(now, now)
        waiting = [asyncio.create_task(turns.take(now + 30.0, now + 30.0)) for _ in range(CALLERS)]
        await asyncio.sleep(0)
        closed = True
        turns.give_back(held)
        places = set(await asyncio.gather(*waiting))
        closed = False
        assert await turns.take(now, now) is Place.TURN
        return places

    assert asyncio.run(run()) == {Place.AWAY}
