"""Laws of lineage: nothing is lost, what stays together stays exactly, and order decides nothing."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit.errors import InvalidValueError
from bandit.rewards.lineage import Move, Reclustering, owner_intervals, owners_now, recluster
from tests.strategies import clusterings, law

DAY = 100
ITEMS = 14
Clusters = dict[str, frozenset[str]]


def name_of(members: frozenset[str]) -> str:
    """A medoid that is easy to foresee."""
    return min(members)


def through(days: Sequence[Sequence[frozenset[str]]]) -> tuple[list[Clusters], list[Reclustering]]:
    """One clustering a day, each inheriting from the one before; day d takes effect at d * DAY."""
    states: list[Clusters] = [{}]
    history: list[Reclustering] = []
    for day, new in enumerate(days):
        taken = {name for change in history for move in change.moves for name in (move.from_cluster, move.to_cluster)}
        ids, change = recluster("u", states[-1], new, [name_of(members) for members in new], day * DAY, taken=taken)
        assert len(set(ids)) == len(ids) == len(new)
        states.append(dict(zip(ids, new, strict=True)))
        history += [change] if change else []
    return states[1:], history


def moved(sums: Mapping[str, float], change: Reclustering) -> dict[str, float]:
    """What a store of sums does when a reclustering takes effect."""
    result: dict[str, float] = defaultdict(float)
    leaving = {move.from_cluster for move in change.moves}
    for cluster, value in sums.items():
        if cluster not in leaving:
            result[cluster] += value
    for move in change.moves:
        result[move.to_cluster] += sums.get(move.from_cluster, 0.0) * move.share
    return dict(result)


@law
@given(clusterings(ITEMS, 2))
def test_shares_are_those_of_the_members_and_sum_to_one(days: list[list[frozenset[str]]]) -> None:
    (old, new), history = through(days)
    moves: dict[str, dict[str, float]] = defaultdict(dict)
    for change in history:
        for move in change.moves:
            moves[move.from_cluster][move.to_cluster] = move.share
    for cluster, members in old.items():
        places = {to: len(members & others) for to, others in new.items() if members & others}
        expected = {to: count / sum(places.values()) for to, count in places.items()}
        assert moves.get(cluster, {cluster: 1.0}) == (expected or {cluster: 1.0})
        if cluster in moves:
            assert sum(moves[cluster].values()) == pytest.approx(1.0, rel=1e-12)
            assert moves[cluster] != {cluster: 1.0}
    assert set(moves) <= set(old)


@law
@given(clusterings(ITEMS, 2))
def test_an_id_is_kept_where_more_than_half_of_all_items_are_shared_and_only_there(days: list[list[frozenset[str]]]) -> None:
    (old, new), _ = through(days)
    for old_id, before in old.items():
        for new_id, after in new.items():
            assert (2 * len(before & after) > len(before | after)) == (old_id == new_id)


@law
@given(clusterings(ITEMS, 1))
def test_identical_clusters_have_no_lineage(days: list[list[frozenset[str]]]) -> None:
    states, history = through([days[0], list(reversed(days[0]))])
    assert history == []
    assert states[0] == states[1]


@law
@given(clusterings(ITEMS, 2), st.randoms(use_true_random=False))
def test_order_decides_nothing(days: list[list[frozenset[str]]], rng: random.Random) -> None:
    def shuffled(members: frozenset[str]) -> list[str]:
        return rng.sample(sorted(members), len(members))

    (old, new), history = through(days)
    again = rng.sample(days[1], len(days[1]))
    before = {cluster: shuffled(old[cluster]) for cluster in rng.sample(sorted(old), len(old))}
    ids, change = recluster("u", before, [shuffled(members) for members in again], [name_of(members) for members in again], DAY)
    assert dict(zip(ids, again, strict=True)) == new
    assert ([change] if change else []) == history


@law
@given(clusterings(ITEMS, 5))
def test_an_id_never_comes_back_as_something_else(days: list[list[frozenset[str]]]) -> None:
    states, history = through(days)
    for before, after in itertools.pairwise(states):
        for cluster in before.keys() & after.keys():
            assert 2 * len(before[cluster] & after[cluster]) > len(before[cluster] | after[cluster])
    left: set[str] = set()
    for change in history:
        sources, targets = {move.from_cluster for move in change.moves}, {move.to_cluster for move in change.moves}
        assert not targets & left
        left |= sources - targets


def test_a_fresh_id_that_means_something_else_gets_the_time() -> None:
    old = {"a": ["p", "q", "r"], "p": ["a", "b", "c"]}
    ids, change = recluster("u", old, [["p"], ["q"], ["r"], ["a"], ["b", "c"]], ["p", "q", "r", "a", "b"], 7, taken={"q"})
    assert ids == ["p~7", "q~7", "r", "a~7", "p"]
    assert change is not None
    assert {(move.from_cluster, move.to_cluster) for move in change.moves} == {("a", i) for i in ("p~7", "q~7", "r")} | {
        ("p", "a~7"),
        ("p", "p"),
    }
    assert recluster("u", {"x": "12"}, ["1", "2"], ["x", "x~7"], 7)[0] == ["x~7~", "x~7"]


def test_half_is_not_more_than_half() -> None:
    assert recluster("u", {"old": "abc"}, ["abcd"], ["a"], 1) == (["old"], None)
    ids, change = recluster("u", {"old": "abc"}, ["abcdef"], ["a"], 1)
    assert ids == ["a"]
    assert change == Reclustering(user_id="u", effective_at=1, moves=[Move(from_cluster="old", to_cluster="a", share=1.0)])


def test_a_cluster_whose_members_are_gone_keeps_its_sums_under_its_id() -> None:
    ids, change = recluster("u", {"gone": "ab", "stays": "cd"}, ["cd", "ef"], ["c", "e"], 1)
    assert (ids, change) == (["stays", "e"], None)
    ids, change = recluster("u", {"a": "xy"}, ["ab"], ["a"], 1)  # the item for which the lost cluster was named is another's medoid
    assert (ids, change) == (["a~1"], None)


def test_members_that_fell_out_of_the_history_have_no_share() -> None:
    _, change = recluster("u", {"old": "abcdef"}, ["a", "bc"], ["a", "b"], 1)
    assert change is not None
    assert {move.to_cluster: move.share for move in change.moves} == {"a": 1 / 3, "b": 2 / 3}


def test_items_need_not_be_strings() -> None:
    assert recluster("u", {"old": [1, 2]}, [[2], [1]], ["x", "y"], 1)[0] == ["x", "y"]


# -- owners -----------------------------------------------------------------------------------------------------------------------

event = st.tuples(st.integers(0, ITEMS - 1), st.integers(-DAY, 6 * DAY), st.integers(-1000, 1000))


@law
@given(clusterings(ITEMS, 4), st.lists(event, max_size=12), st.integers(0, 6 * DAY))
def test_moving_sums_equals_crediting_events(days: list[list[frozenset[str]]], drawn: list[tuple[int, int, int]], delay: int) -> None:
    states, history = through(days)
    events = []
    for item, at, value in drawn:  # each carries an id that some clustering gave, older or newer than its time
        names = [cluster for state in states for cluster, members in sorted(state.items()) if f"i{item:02}" in members]
        if names:
            events.append((names[at % len(names)], at, float(value)))
    expected: dict[str, float] = defaultdict(float)
    for cluster, at, value in events:
        for to, share in owners_now(cluster, at, history).items():
            expected[to] += value * share

    sums: dict[str, float] = {}
    arrivals = sorted((max(at, at + delay * (place % 2)), place) for place, (_, at, _) in enumerate(events))
    clock = [(change.effective_at, 1, place) for place, change in enumerate(history)] + [(at, 0, place) for at, place in arrivals]
    seen: list[Reclustering] = []
    for _, kind, place in sorted(clock):  # an event at the very time of a reclustering comes before it
        if kind:
            sums = moved(sums, history[place])
            seen.append(history[place])
        else:
            cluster, at, value = events[place]
            for to, share in owners_now(cluster, at, seen).items():
                sums[to] = sums.get(to, 0.0) + value * share
    assert set(sums) >= set(expected)
    for cluster, value in sums.items():
        assert value == pytest.approx(expected.get(cluster, 0.0), rel=1e-9, abs=1e-9)
    assert sum(sums.values()) == pytest.approx(sum(value for _, _, value in events), rel=1e-9, abs=1e-9)


@law
@given(clusterings(ITEMS, 5), st.randoms(use_true_random=False))
def test_intervals_name_the_owners_of_every_id_at_every_time(days: list[list[frozenset[str]]], rng: random.Random) -> None:
    states, history = through(days)
    found = owner_intervals(rng.sample(history, len(history)))
    for cluster in {cluster for state in states for cluster in state} | {"stranger"}:
        for at in [-1, *(day * DAY + offset for day in range(len(days)) for offset in (-1, 0, 1))]:
            covering = [span.owners for span in found if span.cluster_id == cluster and span.after < at <= span.until]
            assert len(covering) <= 1
            expected = owners_now(cluster, at, history)
            assert sum(expected.values()) == pytest.approx(1.0, rel=1e-12)
            assert (covering or [{cluster: 1.0}])[0] == pytest.approx(expected, rel=1e-12)


def test_what_nothing_happened_to_stays_exactly() -> None:
    change = Reclustering(user_id="u", effective_at=5, moves=[Move(from_cluster="a", to_cluster="b", share=1.0)])
    assert owners_now("z", 3, [change]) == {"z": 1.0}
    assert owners_now("z", 3, []) == {"z": 1.0}
    assert owner_intervals([]) == []


def test_a_decision_from_before_is_credited_after_and_the_survivor_keeps_what_comes_later() -> None:
    dead = Reclustering(
        user_id="u",
        effective_at=5,
        moves=[Move(from_cluster="a", to_cluster="b", share=0.25), Move(from_cluster="a", to_cluster="c", share=0.75)],
    )
    assert owners_now("a", 9, [dead]) == {"b": 0.25, "c": 0.75}
    alive = Reclustering(
        user_id="u",
        effective_at=7,
        moves=[Move(from_cluster="b", to_cluster="b", share=0.75), Move(from_cluster="b", to_cluster="d", share=0.25)],
    )
    assert owners_now("b", 7, [alive, dead]) == {"b": 0.75, "d": 0.25}
    assert owners_now("b", 8, [alive, dead]) == {"b": 1.0}
    assert owners_now("a", 6, [alive, dead]) == {"b": 0.1875, "d": 0.0625, "c": 0.75}
    assert owners_now("a", 8, [alive, dead]) == {"b": 0.25, "c": 0.75}


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(InvalidValueError, match=r"Move\.share"):
        Move(from_cluster="a", to_cluster="b", share=share)


def test_a_reclustering_goes_over_the_wire() -> None:
    change = Reclustering(user_id="u", effective_at=5, moves=[Move(from_cluster="a", to_cluster="ü", share=1 / 3)])
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(change), type=Reclustering) == change
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"from_cluster":"a","to_cluster":"b","share":2}', type=Move)
