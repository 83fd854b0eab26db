"""The features: finite for every user, and free of the order of clusters."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit.model.featurize import FEATURE_NAMES, featurize
from bandit.rewards.decay import HalfLives, align
from bandit.rewards.prior import shrink
from bandit.types import MICROSECONDS_PER_MINUTE, ClusterRewards, Prior, Rate, Sums
from tests.strategies import EMPTY_PRIOR, NOW, law, reordered, simple_evidence, simple_profile, users

DEAD_ZONE = 1.01e-4  # features below 1e-4 are set to 0
RATE = FEATURE_NAMES.index("shrunk_rate")


@law
@given(users())
def test_every_user_gets_finite_float32_features_one_row_per_cluster_one_column_per_name(user):
    profile, evidence, prior = user
    features = featurize(profile, evidence, prior, NOW, {})
    assert features.shape == (len(profile), len(FEATURE_NAMES))
    assert features.dtype == np.float32
    assert np.isfinite(features).all()


def test_names_are_distinct_and_safe_in_vowpal_wabbits_text_format():
    assert len(set(FEATURE_NAMES)) == len(FEATURE_NAMES)
    assert all(name.isidentifier() for name in FEATURE_NAMES)


@law
@given(users(min_clusters=1), st.randoms(use_true_random=False))
def test_another_order_of_clusters_gives_the_same_rows_in_that_order(user, random):
    profile, evidence, prior = user
    rows = np.array(random.sample(range(len(profile)), len(profile)))
    whole = featurize(profile, evidence, prior, NOW, {})
    moved = featurize(reordered(profile, rows), evidence.take(rows), prior, NOW, {})
    np.testing.assert_allclose(moved, whole[rows], rtol=1e-5, atol=DEAD_ZONE)


@law
@given(users(min_clusters=1))
def test_the_same_arguments_give_the_same_bytes(user):
    profile, evidence, prior = user
    assert featurize(profile, evidence, prior, NOW, {}).tobytes() == featurize(profile, evidence, prior, NOW, {}).tobytes()


def test_a_users_rate_is_shrunk_to_the_topics_and_a_topic_that_was_never_seen_has_the_global_mean():
    prior = Prior(rate=Rate(mean=0.2, strength=4.0), topic_means={7: 0.6})
    profile = dataclasses.replace(simple_profile(2), topic_ids=np.array([7, 8]))
    of = lambda evidence, name: featurize(profile, evidence, prior, NOW, {})[:, FEATURE_NAMES.index(name)]  # noqa: E731
    np.testing.assert_allclose(of(simple_evidence([0, 0], [0, 0]), "topic_rate"), [0.6, 0.2], rtol=1e-6)
    np.testing.assert_allclose(of(simple_evidence([0, 0], [0, 0]), "user_rate"), [0.6, 0.2], rtol=1e-6)  # no impressions: topic
    known = [(12 + 4 * 0.6) / 16, (12 + 4 * 0.2) / 16]  # all of the user's impressions count for both
    np.testing.assert_allclose(of(simple_evidence([12, 0], [12, 0]), "user_rate"), known, rtol=1e-6)
    np.testing.assert_allclose(of(simple_evidence([12, 0], [12, 0]), "shrunk_rate")[1], known[1], rtol=1e-6)  # empty cluster: user


@law
@given(users(min_clusters=1))
def test_a_cluster_without_evidence_gets_the_users_average_as_its_rate(user):
    profile, evidence, prior = user
    empty = evidence.impressions_long == 0.0
    topic, strength = prior.topic_mean(profile.topic_ids), prior.rate.strength
    expected = shrink(evidence.reward_long.sum(), evidence.impressions_long.sum(), topic, strength).astype(np.float32)
    np.testing.assert_allclose(featurize(profile, evidence, prior, NOW, {})[empty, RATE], expected[empty], rtol=1e-6, atol=DEAD_ZONE)


def test_without_any_evidence_the_rate_is_that_of_the_topic():
    prior = Prior(rate=Rate(mean=0.2, strength=8.0), topic_means={0: 0.7})
    features = featurize(simple_profile(3), simple_evidence([0] * 3, [0] * 3), prior, NOW, {})
    np.testing.assert_allclose(features[:, RATE], 0.7, rtol=1e-6)


def test_more_reward_raises_the_rate_of_its_cluster_above_the_others():
    features = featurize(simple_profile(3), simple_evidence([5, 5, 0], [5, 0, 0]), EMPTY_PRIOR, NOW, {})
    assert features[0, RATE] > features[2, RATE] > features[1, RATE]


def test_time_moves_the_features_of_the_session_and_leaves_the_long_run_rate():
    half_lives = HalfLives(session=30 * MICROSECONDS_PER_MINUTE, long=10**30)  # the long run stands still
    impressions, reward, zero = np.array([6.0, 6.0]), np.array([6.0, 0.0]), np.zeros(2)
    rewards = ClusterRewards(
        cluster_ids=["c0", "c1"],
        as_of=NOW,
        sums=Sums(np.array([impressions, reward, impressions, reward, zero])),
    )
    profile = simple_profile(2)
    at = lambda moment: featurize(profile, align(profile, rewards, moment, half_lives), EMPTY_PRIOR, NOW, {})  # noqa: E731
    now, later, forgotten = at(NOW), at(NOW + half_lives.session), at(NOW + 100 * half_lives.session)
    moved = np.abs(now - later).max(axis=0) > 1e-3
    assert moved.any()
    assert not moved[RATE]
    untouched = simple_evidence([0, 0], [0, 0])
    start = featurize(profile, untouched, EMPTY_PRIOR, NOW, {})
    np.testing.assert_allclose(forgotten[:, moved], start[:, moved], atol=DEAD_ZONE)  # a session that is over leaves no trace


@pytest.mark.parametrize("context", [{}, {"surface": "home"}])
def test_the_context_of_this_version_changes_nothing(context):
    evidence = simple_evidence([1, 2], [1, 0])
    plain = featurize(simple_profile(2), evidence, EMPTY_PRIOR, NOW, {})
    np.testing.assert_array_equal(featurize(simple_profile(2), evidence, EMPTY_PRIOR, NOW, context), plain)
