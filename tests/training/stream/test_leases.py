"""Leases: every partition has one owner at most, each owner its fair part, and nothing stays without one."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence

import pytest
import redis

from feature_repo.keys import PARTITIONS
from tests.tables_made import KEYS
from training.stream.leases import Leases

ALL = set(range(PARTITIONS))
FOREVER = 1000.0


class Clock:
    """Time that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def process(url: str, *, seconds: float = FOREVER, owner: str = "", clock: Clock | None = None) -> Leases:
    return Leases(redis.Redis.from_url(url), KEYS, owner or uuid.uuid4().hex, seconds=seconds, clock=clock or time.monotonic)


def settle(processes: Sequence[Leases], rounds: int = 3) -> list[set[int]]:
    for _ in range(rounds):
        for one in processes:
            one.balance()
    return [set(one.fences) for one in processes]


def owners(url: str) -> list[bytes | None]:
    return redis.Redis.from_url(url).mget([KEYS.partition(number).lease for number in range(PARTITIONS)])


def test_one_process_takes_everything_at_once(empty_redis: str) -> None:
    one = process(empty_redis, owner="a" * 32)
    assert one.due
    assert one.balance() == ALL
    assert set(one.fences) == ALL
    assert owners(empty_redis) == [b"a" * 32] * PARTITIONS
    assert min(one.fences.values()) > 1_700_000_000  # the clock's: they do not begin again when Redis has lost them


def test_what_is_owned_is_renewed_and_not_taken_again(empty_redis: str) -> None:
    one, client = process(empty_redis), redis.Redis.from_url(empty_redis)
    one.balance()
    before = dict(one.fences)
    for number in ALL:
        client.pexpire(KEYS.partition(number).lease, 50_000)
    assert one.balance() == set()
    assert one.fences == before
    assert all(client.pttl(KEYS.partition(number).lease) > 900_000 for number in ALL)


def test_leases_are_renewed_three_times_in_their_life(empty_redis: str) -> None:
    clock = Clock()
    one = process(empty_redis, seconds=30.0, clock=clock)
    one.balance()
    for now, due in ((9.9, False), (10.0, True), (29.0, True)):
        clock.now = now
        assert one.due is due


def test_a_lease_that_ran_out_is_taken_over_with_a_larger_number(empty_redis: str) -> None:
    dead = process(empty_redis, seconds=0.2)
    dead.balance()
    heir = process(empty_redis)
    assert heir.balance() == set()  # all is still owned
    time.sleep(0.25)
    assert heir.balance() == ALL
    assert all(heir.fences[number] > dead.fences[number] for number in ALL)
    dead.balance()
    assert dead.fences == {}  # it wakes, and sees that it owns nothing
    assert set(heir.fences) == ALL


def test_a_lease_that_ran_out_and_that_nobody_took_is_taken_anew_with_a_larger_number(empty_redis: str) -> None:
    one = process(empty_redis, seconds=0.2)
    one.balance()
    before = dict(one.fences)
    time.sleep(0.25)
    assert one.balance() == ALL
    assert all(one.fences[number] > before[number] for number in ALL)


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_fairly_and_nothing_is_owned_twice_or_by_nobody(empty_redis: str, count: int) -> None:
    processes = [process(empty_redis)]
    settle(processes)
    processes += [process(empty_redis) for _ in range(count - 1)]  # who comes later gets its part too
    parts = settle(processes)
    assert set.union(*parts) == ALL
    assert sum(len(part) for part in parts) == PARTITIONS
    assert max(len(part) for part in parts) <= -(-PARTITIONS // count)


def test_what_is_given_back_can_be_taken_by_others(empty_redis: str) -> None:
    one, other = process(empty_redis), process(empty_redis)
    one.balance()
    other.balance()
    before = one.fences[3]
    one.give_back([3, 4])
    assert 3 not in one.fences
    assert {3, 4} <= other.balance()
    assert other.fences[3] > before


def test_nobody_gives_back_what_is_anothers(empty_redis: str) -> None:
    dead, heir = process(empty_redis, seconds=0.2), process(empty_redis, owner="b" * 32)
    dead.balance()
    time.sleep(0.25)
    heir.balance()
    dead.leave()
    assert owners(empty_redis) == [b"b" * 32] * PARTITIONS


def test_who_leaves_gives_everything_back_and_counts_no_more(empty_redis: str) -> None:
    one, other = process(empty_redis), process(empty_redis)
    settle([one, other])
    one.leave()
    assert one.fences == {}
    assert len(redis.Redis.from_url(empty_redis).zrange(KEYS.workers, 0, -1)) == 1
    other.balance()
    assert set(other.fences) == ALL


def test_a_dead_process_counts_no_more_once_its_time_is_over(empty_redis: str) -> None:
    dead, alive = process(empty_redis, seconds=0.2), process(empty_redis)
    settle([dead, alive])
    time.sleep(0.25)
    settle([alive])
    assert set(alive.fences) == ALL


def test_who_forgets_takes_everything_anew(empty_redis: str) -> None:
    one = process(empty_redis)
    one.balance()
    before = dict(one.fences)
    one.forget()
    assert one.fences == {}
    assert one.due
    assert one.balance() == ALL
    assert all(fence > before[number] for number, fence in one.fences.items())


def test_leases_are_kept_while_something_long_is_done(empty_redis: str) -> None:
    one, other = process(empty_redis, seconds=0.3), process(empty_redis)
    one.balance()
    with one.kept():
        time.sleep(0.7)
        assert other.balance() == set()
    assert set(one.fences) == ALL


def test_an_empty_redis_makes_everybody_take_anew(empty_redis: str) -> None:
    one = process(empty_redis)
    one.balance()
    redis.Redis.from_url(empty_redis).flushdb()
    assert one.balance() == ALL
