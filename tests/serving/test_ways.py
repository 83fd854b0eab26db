"""`select_async` and `select_many` make the decisions that `select` makes."""

from __future__ import annotations

import asyncio

import hiredis
import msgspec
import pytest

from bandit.errors import InvalidValueError
from serving import Selection
from serving.decision_log import append_command
from tests.served_world import EMPTY, QUIET, REWARDED, UNKNOWN, Served, hand_over
from tests.strategies import random_model
from tests.tables_made import KEYS, NOW

K = 8
USERS = [*REWARDED, QUIET, UNKNOWN, EMPTY, "u0"] * 40  # more than one pipeline, and some twice


def one_by_one(served: Served, policy: str) -> tuple[list[Selection], list[bytes]]:
    with served.open(policy) as selector:
        selections = [selector.select(user, K, {"a": "b"}, now=NOW, seed=seed) for seed, user in enumerate(USERS)]
    records = sorted(served.records())
    for key in list(served.redis.scan_iter("{query_rewards:*")):
        served.redis.delete(key)
    return selections, records


@pytest.mark.parametrize("at_once", [1, 2, 3, 20])
@pytest.mark.parametrize("policy", ["bandit", "query_reward"])
def test_many_users_get_what_each_would_get_alone(served: Served, policy: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.selector._PIPELINED_USERS", at_once)
    hand_over(served.redis, "1", random_model(3))
    expected, records = one_by_one(served, policy)
    with served.open(policy) as selector:
        selections = selector.select_many(USERS, K, {"a": "b"}, now=NOW, seeds=range(len(USERS)))
    assert selections == expected
    assert sorted(served.records()) == records


@pytest.mark.parametrize("policy", ["bandit", "query_reward"])
def test_asyncio_gives_the_same_decisions_however_they_interleave(served: Served, policy: str) -> None:
    hand_over(served.redis, "1", random_model(3))
    expected, records = one_by_one(served, policy)

    async def at_once() -> list[Selection]:
        selector = served.open(policy)
        made = await asyncio.gather(*(selector.select_async(user, K, {"a": "b"}, now=NOW, seed=seed) for seed, user in enumerate(USERS)))
        await selector.close_async()
        return made

    assert asyncio.run(at_once()) == expected
    assert sorted(served.records()) == records


def test_nobody_is_no_users(served: Served) -> None:
    with served.open() as selector:
        assert selector.select_many([], K) == []
        with pytest.raises(InvalidValueError, match="seeds"):
            selector.select_many(["u0"], K, seeds=[1, 2])
        with pytest.raises(InvalidValueError, match="user_id"):
            selector.select_many(["u0", ""], K)
    assert not served.records()


def test_many_without_redis_come_from_the_profiles_seen_last(served: Served) -> None:
    with served.open(deadline_ms=200.0) as selector:
        before = selector.select_many(["u0", "u1"], K, now=NOW, seeds=[1, 2])
        with served.halted():
            during = selector.select_many(["u0", "u1", "u2"], K, now=NOW, seeds=[1, 2, 3])
    assert [selection.queries for selection in during[:2]] == [selection.queries for selection in before]
    assert all(selection.degraded and not selection.logged for selection in during)
    assert not during[2].queries


def test_a_refused_write_is_said_and_does_not_open_the_breaker(served: Served) -> None:
    """A Redis that is full answers reads, and refuses to log."""
    served.redis.config_set("maxmemory", "1")
    try:
        with served.open() as selector:
            for _ in range(5):
                selection = selector.select("u0", K, now=NOW, seed=1)
                assert (len(selection.queries), selection.degraded, selection.logged) == (K, True, False)
                assert "maxmemory" in selection.reason
            assert not selector.breaker.is_open
    finally:
        served.redis.config_set("maxmemory", "0")
    assert served.decisions() == []


def test_the_packed_command_is_what_redis_takes(served: Served) -> None:
    with served.open() as selector:
        selector.select("u0", K, now=NOW, seed=1)
    (decision,) = served.decisions()
    reader = hiredis.Reader()
    reader.feed(append_command(decision, KEYS))
    name, key, position, field, record = reader.gets()
    assert (name, key.startswith(b"{query_rewards:"), position, field) == (b"XADD", True, b"*", b"r")
    assert msgspec.msgpack.decode(record)["decision_id"] == decision.decision_id
