"""Features of a user's clusters: one function, used when serving and (through the decision log) when training.

No identifiers: an unseen id would not get an average weight, features that generalise do. Ranges are about [-1, 1], because the
learner multiplies them pairwise.
"""

from __future__ import annotations

import math

import numpy as np

from bandit.rewards.prior import shrink
from bandit.types import MICROSECONDS_PER_DAY, Floats, Floats32, Ints, Prior, Profile, Sums

FEATURE_VERSION = 1
FEATURE_NAMES = (
    "shrunk_rate",  # the first layer of the score: reward per impression
    "session_lift",  # shrunk rate of this session minus the long-run one
    "log_impressions",  # logarithm of decayed impressions, long half-life
    "session_log_impressions",  # the same, session half-life
    "user_rate",  # what a cluster of this user and topic gets without evidence of its own
    "topic_rate",
    "topic_history",  # what the topic's impressions earned above their users' average, before Query Rewards began
    "action_scale",  # logarithm of the number of actions
    "importance_share",  # of the user's recency-weighted actions
    "actions_per_item",  # more than one: items that were, say, both viewed and liked
    "last_action_age",  # logarithm of days since the last action
    "freshness",  # exp(-days since the last action / 7)
    "clusters",  # logarithm of the number of the user's clusters
)
_DEAD_ZONE = 1e-4  # smaller magnitudes become 0: adaptive learners divide by them (--coin gave NaN weights)


def featurize(profile: Profile, evidence: Sums, prior: Prior, now: int, context: dict[str, str]) -> Floats32:  # noqa: ARG001
    """Feature matrix of n clusters, float32 (n, len(FEATURE_NAMES)), in the order of `FEATURE_NAMES`.

    Args:
        profile: n clusters.
        evidence: aligned to the profile, decayed to `now`.
        prior: levels above the user.
        now: time of the decision, UTC microseconds.
        context: of the request; logged with the decision, no feature of this version depends on it.
    """
    matrix = np.empty((len(profile), len(FEATURE_NAMES)), np.float32)
    _fill(matrix, profile, evidence.values, prior, now)
    return matrix


def _fill(matrix: Floats32, profile: Profile, sums: Floats, prior: Prior, now: int) -> None:
    """Write the features, (n, len(FEATURE_NAMES)); `sums` are those of `Sums`, (5, n)."""
    impressions_session, reward_session, impressions_long, reward_long = sums[0], sums[1], sums[2], sums[3]
    topic_ids, topic_history, item_counts = profile.topic_ids, profile.topic_history, profile.item_counts
    action_counts, importance, last_action_at = profile.action_counts, profile.importance, profile.last_action_at
    topic_means, mean, strength = prior.topic_means, prior.rate.mean, prior.rate.strength
    n, types = action_counts.shape[0], action_counts.shape[1]
    reward, impressions, total_importance = 0.0, 0.0, 0.0
    for row in range(n):
        reward += reward_long[row]
        impressions += impressions_long[row]
        total_importance += importance[row]
    clusters, day = math.log1p(n) / 5.0, float(MICROSECONDS_PER_DAY)
    for row in range(n):
        topic_mean = topic_means.get(topic_ids[row], mean)
        base = (reward + strength * topic_mean) / (impressions + strength)
        rate = (reward_long[row] + strength * base) / (impressions_long[row] + strength)
        session = (reward_session[row] + strength * rate) / (impressions_session[row] + strength)
        actions = 0.0
        for column in range(types):
            actions += action_counts[row, column]
        age_days = max(now - last_action_at[row], 0) / day
        matrix[row, 0] = _zero_if_tiny(rate)
        matrix[row, 1] = _zero_if_tiny(session - rate)
        matrix[row, 2] = _zero_if_tiny(math.log1p(impressions_long[row]) / 5.0)
        matrix[row, 3] = _zero_if_tiny(math.log1p(impressions_session[row]) / 5.0)
        matrix[row, 4] = _zero_if_tiny(base)
        matrix[row, 5] = _zero_if_tiny(topic_mean)
        matrix[row, 6] = _zero_if_tiny(5.0 * topic_history[row])
        matrix[row, 7] = _zero_if_tiny(math.log1p(actions) / 5.0)
        matrix[row, 8] = _zero_if_tiny(importance[row] / total_importance if total_importance > 0.0 else 1.0 / n)
        matrix[row, 9] = _zero_if_tiny(actions / max(item_counts[row], 1) - 1.0)
        matrix[row, 10] = _zero_if_tiny(math.log1p(age_days) / 5.0)
        matrix[row, 11] = _zero_if_tiny(math.exp(-age_days / 7.0))
        matrix[row, 12] = clusters


def _zero_if_tiny(value: float) -> float:
    """0 for what is too small."""
    return 0.0 if -_DEAD_ZONE < value < _DEAD_ZONE else value


PRIOR_FEATURES = ("shrunk_rate", "session_lift", "user_rate", "topic_rate")  # those that change with the prior


def rebase(features: Floats32, sums: Sums, totals: tuple[Floats, Floats], topic_ids: Ints, prior: Prior) -> Floats32:
    """The features that `featurize` would have made under another prior, for any number of decisions at once.

    Args:
        features: as served, float32 (..., d); left as they are.
        sums: evidence of the same clusters, (...).
        totals: reward and impressions, long half-life, over all clusters of the user; they broadcast against (...).
        topic_ids: (...).
        prior: the levels above the user.
    """
    reward, impressions = totals
    topic = prior.topic_mean(topic_ids.ravel()).reshape(topic_ids.shape)
    base = shrink(reward, impressions, topic, prior.rate.strength)
    rate = shrink(sums.reward_long, sums.impressions_long, base, prior.rate.strength)
    session = shrink(sums.reward_session, sums.impressions_session, rate, prior.rate.strength)
    result = features.copy()
    for name, column in zip(PRIOR_FEATURES, (rate, session - rate, base, topic), strict=True):
        result[..., FEATURE_NAMES.index(name)] = np.where(np.abs(column) < _DEAD_ZONE, 0.0, column)
    return result
