"""Decayed sums: moved in time, and lined up by cluster id."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit.errors import InvalidValueError
from bandit.rewards.decay import HalfLives, align, decay
from bandit.types import MICROSECONDS_PER_DAY, MICROSECONDS_PER_MINUTE, ClusterRewards, Evidence
from tests.strategies import NOW, law, reordered, simple_profile

HALF_LIVES = HalfLives(session=30 * MICROSECONDS_PER_MINUTE, long=14 * MICROSECONDS_PER_DAY)
SUMS = ("impressions_session", "reward_session", "impressions_long", "reward_long", "draws_session")


def rewards(ids: list[str], as_of: int = NOW, seed: int = 0) -> ClusterRewards:
    rng = np.random.default_rng(seed)
    sums = {name: rng.uniform(0.0, 9.0, len(ids)) for name in SUMS}
    return ClusterRewards(cluster_ids=ids, as_of=as_of, last_impression_at=NOW - rng.integers(0, 10**12, len(ids)), **sums)


def columns(evidence: Evidence) -> dict[str, np.ndarray]:
    return {field.name: getattr(evidence, field.name) for field in dataclasses.fields(evidence)}


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


def test_each_sum_moves_with_its_own_half_life_and_times_stay():
    profile, sums = simple_profile(3), rewards(["c0", "c1", "c2"])
    now, later = align(profile, sums, NOW, HALF_LIVES), align(profile, sums, NOW + HALF_LIVES.session, HALF_LIVES)
    for name in SUMS:
        factor = 0.5 if name.endswith("session") else decay(HALF_LIVES.session, HALF_LIVES.long)
        np.testing.assert_array_equal(getattr(now, name), getattr(sums, name))
        np.testing.assert_allclose(getattr(later, name), factor * getattr(now, name), rtol=1e-12)
    np.testing.assert_array_equal(later.last_impression_at, sums.last_impression_at)


def test_clusters_are_matched_by_id_never_by_position():
    profile = simple_profile(4)
    whole = columns(align(profile, rewards(["c0", "c1", "c2", "c3"]), NOW, HALF_LIVES))
    sums = rewards(["c0", "c1", "c2", "c3"])
    rows = np.array([2, 0, 3, 1])
    moved = dataclasses.replace(
        sums,
        cluster_ids=[sums.cluster_ids[row] for row in rows],
        last_impression_at=sums.last_impression_at[rows],
        **{name: getattr(sums, name)[rows] for name in SUMS},
    )
    for name, values in columns(align(profile, moved, NOW, HALF_LIVES)).items():
        np.testing.assert_array_equal(values, whole[name])
    for name, values in columns(align(reordered(profile, rows), sums, NOW, HALF_LIVES)).items():
        np.testing.assert_array_equal(values, whole[name][rows])


def test_clusters_that_the_rewards_do_not_name_get_zero_and_the_others_are_left_out():
    sums = rewards(["gone", "c1"])
    for name, values in columns(align(simple_profile(3), sums, NOW, HALF_LIVES)).items():
        np.testing.assert_array_equal(values, [0, getattr(sums, name)[1], 0])


@pytest.mark.parametrize("sums", [None, rewards([])])
@pytest.mark.parametrize("n", [0, 3])
def test_without_rewards_all_evidence_is_zero(sums, n):
    for values in columns(align(simple_profile(n), sums, NOW, HALF_LIVES)).values():
        np.testing.assert_array_equal(values, np.zeros(n))


def test_take_keeps_the_rows_that_were_asked_for():
    whole = align(simple_profile(3), rewards(["c0", "c1", "c2"]), NOW, HALF_LIVES)
    for name, values in columns(whole.take(np.array([2, 0]))).items():
        np.testing.assert_array_equal(values, getattr(whole, name)[[2, 0]])


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
