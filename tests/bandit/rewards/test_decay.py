"""Decayed sums: moved in time, and lined up by cluster id."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit.errors import InvalidValueError
from bandit.rewards.decay import HalfLives, align, decay
from bandit.types import MICROSECONDS_PER_DAY, MICROSECONDS_PER_MINUTE, SUM_NAMES, ClusterRewards, Sums
from tests.strategies import NOW, law, reordered, simple_profile

HALF_LIVES = HalfLives(session=30 * MICROSECONDS_PER_MINUTE, long=14 * MICROSECONDS_PER_DAY)


def rewards(ids: list[str], as_of: int = NOW, seed: int = 0) -> ClusterRewards:
    rng = np.random.default_rng(seed)
    sums = Sums(rng.uniform(0.0, 9.0, (len(SUM_NAMES), len(ids))))
    return ClusterRewards(cluster_ids=ids, as_of=as_of, sums=sums)


def test_each_sum_has_its_row():
    sums = Sums(np.arange(10.0).reshape(5, 2))
    for row, name in enumerate(SUM_NAMES):
        np.testing.assert_array_equal(getattr(sums, name), [2 * row, 2 * row + 1])
    with pytest.raises(InvalidValueError, match=r"Sums\.values"):
        Sums(np.zeros((4, 2)))


def test_decay_halves_each_half_life_and_never_grows_when_time_runs_back():
    assert decay(HALF_LIVES.long, HALF_LIVES.long) == 0.5
    assert decay(3 * HALF_LIVES.session, HALF_LIVES.session) == 0.125
    assert decay(0, 1) == decay(-5, 1) == 1.0


@law
@given(st.integers(0, 10**12), st.integers(0, 10**12), st.integers(10**9, 10**12))
def test_moving_in_two_steps_is_moving_in_one(first, second, half_life):
    assert decay(first, half_life) * decay(second, half_life) == pytest.approx(decay(first + second, half_life), rel=1e-12)


def test_a_moved_sum_equals_the_sum_over_events_at_the_new_time():
    rng = np.random.default_rng(1)
    times, earned = NOW - rng.integers(0, 10**12, 100), rng.uniform(-1, 2, 100)
    at = lambda moment: sum(r * decay(moment - t, HALF_LIVES.long) for t, r in zip(times.tolist(), earned, strict=True))  # noqa: E731
    later = NOW + 3 * MICROSECONDS_PER_DAY
    assert at(NOW) * decay(later - NOW, HALF_LIVES.long) == pytest.approx(at(later), rel=1e-12)


def test_each_sum_moves_with_its_own_half_life():
    profile, sums = simple_profile(3), rewards(["c0", "c1", "c2"])
    now, later = align(profile, sums, NOW, HALF_LIVES), align(profile, sums, NOW + HALF_LIVES.session, HALF_LIVES)
    np.testing.assert_array_equal(now.values, sums.sums.values)
    for name in SUM_NAMES:
        factor = 0.5 if name.endswith("session") else decay(HALF_LIVES.session, HALF_LIVES.long)
        np.testing.assert_allclose(getattr(later, name), factor * getattr(now, name), rtol=1e-12)


def test_clusters_are_matched_by_id_never_by_position():
    profile = simple_profile(4)
    whole = align(profile, rewards(["c0", "c1", "c2", "c3"]), NOW, HALF_LIVES)
    sums = rewards(["c0", "c1", "c2", "c3"])
    rows = np.array([2, 0, 3, 1])
    moved = dataclasses.replace(
        sums,
        cluster_ids=[sums.cluster_ids[row] for row in rows],
        sums=sums.sums.take(rows),
    )
    np.testing.assert_array_equal(align(profile, moved, NOW, HALF_LIVES).values, whole.values)
    np.testing.assert_array_equal(align(reordered(profile, rows), sums, NOW, HALF_LIVES).values, whole.values[:, rows])


def test_clusters_that_the_rewards_do_not_name_get_zero_and_the_others_are_left_out():
    sums = rewards(["gone", "c1"])
    values = align(simple_profile(3), sums, NOW, HALF_LIVES).values
    np.testing.assert_array_equal(values[:, 1], sums.sums.values[:, 1])
    np.testing.assert_array_equal(values[:, [0, 2]], 0.0)


@pytest.mark.parametrize("sums", [None, rewards([])])
@pytest.mark.parametrize("n", [0, 3])
def test_without_rewards_all_evidence_is_zero(sums, n):
    np.testing.assert_array_equal(align(simple_profile(n), sums, NOW, HALF_LIVES).values, np.zeros((5, n)))


def test_take_keeps_the_rows_that_were_asked_for():
    whole = align(simple_profile(3), rewards(["c0", "c1", "c2"]), NOW, HALF_LIVES)
    np.testing.assert_array_equal(whole.take(np.array([2, 0])).values, whole.values[:, [2, 0]])


@pytest.mark.parametrize("name", ["session", "long"])
@pytest.mark.parametrize("value", [0, -1, np.nan])
def test_half_lives_are_positive(name, value):
    with pytest.raises(InvalidValueError, match=name):
        HalfLives(**{"session": 1, "long": 1, name: value})


@pytest.mark.parametrize(
    "name", ["topic_ids", "topic_history", "item_counts", "action_counts", "importance", "last_action_at", "query_offsets", "query_weights"]
)
def test_a_profile_of_arrays_that_do_not_belong_together_is_refused_by_name(name):
    profile = simple_profile(3)
    with pytest.raises(InvalidValueError, match=rf"^Profile\.{name}"):
        dataclasses.replace(profile, **{name: getattr(profile, name)[1:]})
