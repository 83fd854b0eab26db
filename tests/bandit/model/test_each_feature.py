"""The meaning of each feature: its value by its definition, and which features an input moves, in which direction, and no others."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from bandit.model.featurize import FEATURE_NAMES, PRIOR_FEATURES, featurize, rebase
from bandit.types import MICROSECONDS_PER_DAY, SUM_NAMES, Prior, Profile, Rate, Sums
from tests.strategies import NOW, simple_evidence, simple_profile, sums_with

ROWS = (0, 1, 2)
AGES = np.array([1.0, 5.0, 30.0])  # days
IMPRESSIONS_LONG, REWARD_LONG = np.array([10.0, 6.0, 4.0]), np.array([4.0, 1.0, 1.0])
IMPRESSIONS_SESSION, REWARD_SESSION = np.array([3.0, 2.0, 1.0]), np.array([1.0, 0.5, 0.2])
PRIOR = Prior(rate=Rate(mean=0.2, strength=4.0), topic_means={0: 0.5})  # topic 9 was never seen
PROFILE = dataclasses.replace(
    simple_profile(3),
    topic_ids=np.array([0, 0, 9]),
    topic_history=np.array([0.02, 0.03, -0.01]),
    item_counts=np.array([5, 4, 3]),
    action_counts=np.array([[6.0, 4.0], [5.0, 3.0], [2.0, 2.0]]),
    importance=np.array([5.0, 3.0, 2.0]),
    last_action_at=NOW - (AGES * MICROSECONDS_PER_DAY).astype(np.int64),
)
EVIDENCE = sums_with(
    simple_evidence([0.0] * 3, [0.0] * 3),
    impressions_session=IMPRESSIONS_SESSION,
    reward_session=REWARD_SESSION,
    impressions_long=IMPRESSIONS_LONG,
    reward_long=REWARD_LONG,
)


def features(profile: Profile = PROFILE, evidence: Sums = EVIDENCE, prior: Prior = PRIOR, now: int = NOW) -> dict[str, np.ndarray]:
    matrix = featurize(profile, evidence, prior, now, {}).astype(np.float64)
    return {name: matrix[:, column] for column, name in enumerate(FEATURE_NAMES)}


def test_each_feature_has_the_value_of_its_definition():
    topic = np.array([0.5, 0.5, 0.2])
    user = (REWARD_LONG.sum() + 4.0 * topic) / (IMPRESSIONS_LONG.sum() + 4.0)
    rate = (REWARD_LONG + 4.0 * user) / (IMPRESSIONS_LONG + 4.0)
    actions = np.array([10.0, 8.0, 4.0])
    expected = {
        "shrunk_rate": rate,
        "session_lift": (REWARD_SESSION + 4.0 * rate) / (IMPRESSIONS_SESSION + 4.0) - rate,
        "log_impressions": np.log(1.0 + IMPRESSIONS_LONG) / 5.0,
        "session_log_impressions": np.log(1.0 + IMPRESSIONS_SESSION) / 5.0,
        "user_rate": user,
        "topic_rate": topic,
        "topic_history": np.array([0.1, 0.15, -0.05]),
        "action_scale": np.log(1.0 + actions) / 5.0,
        "importance_share": np.array([0.5, 0.3, 0.2]),
        "actions_per_item": np.array([1.0, 1.0, 1.0 / 3.0]),
        "last_action_age": np.log(1.0 + AGES) / 5.0,
        "freshness": np.exp(-AGES / 7.0),
        "clusters": np.full(3, np.log(4.0) / 5.0),
    }
    assert set(expected) == set(FEATURE_NAMES)
    for name, values in features().items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-6, err_msg=name)


def moved(after: dict[str, np.ndarray]) -> dict[str, dict[int, int]]:
    """Of each feature that moved, the direction by row."""
    before = features()
    signs = {
        name: np.sign(np.where(np.isclose(after[name][:3], before[name], rtol=1e-6), 0.0, after[name][:3] - before[name]))
        for name in before
    }
    return {name: {row: int(sign[row]) for row in ROWS if sign[row]} for name, sign in signs.items() if sign.any()}


def every(direction: int) -> dict[int, int]:
    return dict.fromkeys(ROWS, direction)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("impressions_session", {"session_log_impressions": {1: 1}, "session_lift": {1: -1}}),
        ("reward_session", {"session_lift": {1: 1}}),
        ("impressions_long", {"log_impressions": {1: 1}, "shrunk_rate": every(-1), "user_rate": every(-1), "session_lift": every(1)}),
        ("reward_long", {"shrunk_rate": every(1), "user_rate": every(1), "session_lift": every(-1)}),
        ("draws_session", {}),
    ],
)
def test_more_of_one_sum_of_the_second_cluster_moves_these_features_and_no_others(name, expected):
    more = getattr(EVIDENCE, name) + np.array([0.0, 1.0, 0.0])
    assert moved(features(evidence=sums_with(EVIDENCE, **{name: more}))) == expected


@pytest.mark.parametrize(
    ("name", "more", "expected"),
    [
        ("topic_history", np.array([0.0, 0.1, 0.0]), {"topic_history": {1: 1}}),
        ("item_counts", np.array([0, 1, 0]), {"actions_per_item": {1: -1}}),
        ("action_counts", np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]), {"action_scale": {1: 1}, "actions_per_item": {1: 1}}),
        ("action_counts", np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), {"action_scale": {1: 1}, "actions_per_item": {1: 1}}),
        ("importance", np.array([0.0, 1.0, 0.0]), {"importance_share": {0: -1, 1: 1, 2: -1}}),
        ("last_action_at", np.array([0, MICROSECONDS_PER_DAY, 0]), {"last_action_age": {1: -1}, "freshness": {1: 1}}),
        (
            "topic_ids",
            np.array([0, 9, 0]),
            {"topic_rate": {1: -1}, "user_rate": {1: -1}, "shrunk_rate": {1: -1}, "session_lift": {1: 1}},
        ),
        ("query_weights", np.array([1.0, 2.0, 3.0]), {}),
    ],
)
def test_more_of_one_column_of_the_profile_moves_these_features_of_its_cluster_and_no_others(name, more, expected):
    assert moved(features(dataclasses.replace(PROFILE, **{name: getattr(PROFILE, name) + more}))) == expected


def test_time_makes_every_cluster_older():
    assert moved(features(now=NOW + MICROSECONDS_PER_DAY)) == {"last_action_age": every(1), "freshness": every(-1)}


def test_the_global_mean_moves_clusters_of_topics_that_were_never_seen_and_a_topics_mean_its_own():
    rates = {"topic_rate": 1, "user_rate": 1, "shrunk_rate": 1, "session_lift": -1}
    globally = dataclasses.replace(PRIOR, rate=Rate(mean=0.3, strength=4.0))
    assert moved(features(prior=globally)) == {name: {2: sign} for name, sign in rates.items()}
    of_topic = dataclasses.replace(PRIOR, topic_means={0: 0.6})
    assert moved(features(prior=of_topic)) == {name: {0: sign, 1: sign} for name, sign in rates.items()}
    assert set(rates) == set(PRIOR_FEATURES)


def test_a_stronger_prior_moves_the_users_rate_towards_the_topics_and_leaves_the_topics():
    stronger = moved(features(prior=Prior(rate=Rate(mean=0.2, strength=8.0), topic_means={0: 0.5})))
    assert set(stronger) == {"user_rate", "shrunk_rate", "session_lift"}
    assert stronger["user_rate"] == {0: 1, 1: 1, 2: -1}  # from 6 of 20 towards 0.5, 0.5 and 0.2
    assert stronger["shrunk_rate"][1] == 1  # from 1 of 6 towards the user's


def test_one_more_cluster_that_nothing_is_known_about_moves_the_number_of_clusters_alone():
    rows = [0, 1, 2, 2]
    names = ("topic_ids", "topic_history", "item_counts", "action_counts", "last_action_at")
    more = dataclasses.replace(
        PROFILE,
        cluster_ids=[*PROFILE.cluster_ids, "new"],
        importance=np.append(PROFILE.importance, 0.0),
        query_offsets=np.append(PROFILE.query_offsets, 3),
        **{name: getattr(PROFILE, name)[rows] for name in names},
    )
    evidence = sums_with(simple_evidence([0.0] * 4, [0.0] * 4), **{name: np.append(getattr(EVIDENCE, name), 0.0) for name in SUM_NAMES})
    assert moved(features(more, evidence)) == {"clusters": every(1)}


def test_what_is_missing_or_cannot_be_counts_as_nothing():
    without = dataclasses.replace(
        PROFILE, importance=np.zeros(3), item_counts=np.zeros(3, np.int64), last_action_at=np.full(3, NOW + MICROSECONDS_PER_DAY)
    )
    values = features(without)
    np.testing.assert_allclose(values["importance_share"], 1.0 / 3.0, rtol=1e-6)  # equal shares
    np.testing.assert_allclose(values["actions_per_item"], [9.0, 7.0, 3.0], rtol=1e-6)  # as if one item
    np.testing.assert_array_equal(values["last_action_age"], 0.0)  # an action in the future is of now
    np.testing.assert_array_equal(values["freshness"], 1.0)


@pytest.mark.parametrize(("history", "expected"), [(1.9e-5, 0.0), (-1.9e-5, 0.0), (2.1e-5, 1.05e-4), (-2.1e-5, -1.05e-4)])
def test_magnitudes_below_one_in_ten_thousand_are_nothing(history, expected):
    values = features(dataclasses.replace(PROFILE, topic_history=np.full(3, history)))["topic_history"]
    np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_rebased_features_are_those_of_the_other_prior():
    other = Prior(rate=Rate(mean=0.4, strength=9.0), topic_means={0: 0.1, 9: 0.7})
    served, wanted = (featurize(PROFILE, EVIDENCE, prior, NOW, {}) for prior in (PRIOR, other))
    totals = REWARD_LONG.sum(), IMPRESSIONS_LONG.sum()
    before = served.copy()
    np.testing.assert_allclose(rebase(served, EVIDENCE, totals, PROFILE.topic_ids, other), wanted, rtol=1e-6)
    np.testing.assert_array_equal(served, before)
    small = Prior(rate=Rate(mean=0.9e-4, strength=9.0))
    nothing = simple_evidence([0.0] * 3, [0.0] * 3)
    rebased = rebase(served, nothing, (np.zeros(3), np.zeros(3)), PROFILE.topic_ids, small)
    np.testing.assert_array_equal(rebased[:, [FEATURE_NAMES.index(name) for name in PRIOR_FEATURES]], 0.0)
