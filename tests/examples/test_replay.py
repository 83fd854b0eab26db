"""Pool replay against pools small enough to be followed by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from bandit.records import Query
from bandit.rewards.scheme import RewardScheme
from examples.kuairand.replay import Exposure, Pool, Request, State, nearest_cluster, play, pools_of, requests, rounds

SCHEME = RewardScheme(weights={"repin": 1.0, "like": 1.0, "hide": -1.0}, minimum=-1.0, maximum=1.5)


@dataclass(frozen=True)
class Chosen:
    decision_id: str
    queries: Sequence[Query]


class First:
    """Chooses from the first clusters that still have something to show, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, dict[str, int], int, int]] = []

    def __call__(self, user_id: str, k: int, *, caps: Mapping[str, int], now: int, seed: int) -> Chosen:
        self.asked.append((user_id, k, dict(caps), now, seed))
        drawn = [cluster for cluster, cap in caps.items() for _ in range(cap)][:k]
        queries = [Query(item_id=f"q{number}", cluster_id=cluster, propensity=1.0) for number, cluster in enumerate(drawn)]
        return Chosen(decision_id=f"d{len(self.asked)}", queries=queries)


def exposure(item: str, at: int, *actions: str) -> Exposure:
    return Exposure(item_id=item, at=at, actions=actions)


def pool(user: str = "u", **groups: int) -> Pool:
    """Clusters of so many exposures, one every ten time steps."""
    return Pool(
        user_id=user, exposures={name: [exposure(f"{name}{place}", 10 * place) for place in range(size)] for name, size in groups.items()}
    )


@pytest.mark.parametrize(
    ("groups", "playable", "stop"),
    [({"a": 2, "b": 1}, True, 1), ({"a": 1, "b": 1}, False, 1), ({"a": 9}, False, 4), ({"a": 3, "b": 3, "c": 1}, True, 3), ({}, False, 0)],
)
def test_who_can_be_played_and_how_long(groups: dict[str, int], playable: bool, stop: int) -> None:
    made = pool(**groups)
    assert (made.size, made.playable, made.stop) == (sum(groups.values()), playable, stop)


def test_an_exposure_belongs_to_the_nearest_medoid_that_is_near_enough() -> None:
    medoids = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    assert nearest_cluster(np.array([0.8, 0.6], np.float32), medoids, 0.5) == 0
    assert nearest_cluster(np.array([0.6, 0.8], np.float32), medoids, 0.5) == 1
    assert nearest_cluster(np.array([0.6, 0.8], np.float32), medoids, 0.9) == -1
    assert nearest_cluster(np.array([-1.0, 0.0], np.float32), medoids, 0.0) == 1


@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_requests_ask_for_half_of_each_pool_in_time_order(k: int) -> None:
    pools = [pool("u", a=6, b=5), pool("v", a=3, b=1), pool("w", a=20, b=20)]
    found = requests(pools, k)
    for one in pools:
        own = [request for request in found if request.user_id == one.user_id]
        assert sum(request.k for request in own) == one.stop
        assert all(0 < request.k <= k for request in own)
        times = {shown.at for group in one.exposures.values() for shown in group}
        assert {request.at for request in own} <= times
    assert [(request.at, request.user_id) for request in found] == sorted((request.at, request.user_id) for request in found)


def test_rounds_hold_each_request_once_and_pass_over_empty_ones() -> None:
    found = [Request(at=at, user_id="u", k=1) for at in (95, 100, 109, 110, 149)]
    split = list(rounds(found, 100, 10))
    assert [(end, [request.at for request in held]) for end, held in split] == [(110, [95, 100, 109]), (120, [110]), (150, [149])]


def test_a_request_shows_the_next_unused_exposures_with_what_really_followed() -> None:
    shown = {"a": [exposure("a0", 1, "repin", "like"), exposure("a1", 2)], "b": [exposure("b0", 3, "hide")]}
    made, state, select = Pool(user_id="u", exposures=shown), State(), First()
    first = play(Request(at=7, user_id="u", k=1), made, state, select, SCHEME.impression_reward, seed=4)
    assert [(event.item_id, event.action) for event in first] == [("a0", "impression"), ("a0", "repin"), ("a0", "like")]
    assert {(e.decision_id, e.user_id, e.cluster_id, e.query_id, e.occurred_at) for e in first} == {("d1", "u", "a", "q0", 7)}
    assert (state.reward, state.impressions, state.used) == ({"u": 1.5}, {"u": 1}, {("u", "a"): 1})
    second = play(Request(at=8, user_id="u", k=5), made, state, select, SCHEME.impression_reward, seed=5)
    assert [(event.item_id, event.action) for event in second] == [("a1", "impression"), ("b0", "impression"), ("b0", "hide")]
    assert (state.reward, state.impressions, state.decisions) == ({"u": 0.5}, {"u": 3}, 2)
    assert play(Request(at=9, user_id="u", k=1), made, state, select, SCHEME.impression_reward, seed=6) == []
    assert select.asked == [("u", 1, {"a": 2, "b": 1}, 7, 4), ("u", 5, {"a": 1, "b": 1}, 8, 5), ("u", 1, {}, 9, 6)]
    assert len({event.event_id for event in (*first, *second)}) == 6


def test_pools_keep_time_order_and_leave_out_the_far_and_the_unknown() -> None:
    vectors = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], np.float32)
    clusters = {user: (["a", "b"], vectors[:2]) for user in ("v", "u", "alone")}
    rows = [("v", 0), ("u", 0), ("v", 1), ("stranger", 0), ("u", 2), ("v", 0), ("u", 1), ("u", 0), ("alone", 0)]
    shown = [exposure(f"x{place}", place) for place in range(len(rows))]
    users, items = [user for user, _ in rows], np.array([item for _, item in rows])
    found = pools_of(users, items, shown, clusters, vectors, 0.3)
    told = [(one.user_id, {name: [each.item_id for each in group] for name, group in one.exposures.items()}) for one in found]
    assert told == [("u", {"a": ["x1", "x7"], "b": ["x6"]}), ("v", {"a": ["x0", "x5"], "b": ["x2"]})]
