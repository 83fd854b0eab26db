"""Features of a user's clusters: one function, used when serving and (through the decision log) when training.

No identifiers: an unseen id would not get an average weight, features that generalise do. Ranges are about [-1, 1], because the
learner multiplies them pairwise.
"""

from __future__ import annotations

import numpy as np

from bandit.prior import mean_seen_from, shrink
from bandit.types import MICROSECONDS_PER_DAY, Evidence, Floats, Floats32, Ints, Prior, Profile

FEATURE_VERSION = 1
FEATURE_NAMES = (
    "shrunk_rate",  # the first layer of the score: reward per impression
    "session_lift",  # shrunk rate of this session minus the long-run one
    "evidence",  # logarithm of decayed impressions, long half-life
    "session_evidence",  # the same, session half-life
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
_LEAST = 1e-4  # smaller magnitudes become 0: adaptive learners divide by them (--coin gave NaN weights)


def featurize(profile: Profile, evidence: Evidence, prior: Prior, now: int, context: dict[str, str]) -> Floats32:  # noqa: ARG001
    """Feature matrix of n clusters, float32 (n, len(FEATURE_NAMES)), in the order of `FEATURE_NAMES`.

    Args:
        profile: n clusters.
        evidence: aligned to the profile, decayed to `now`.
        prior: levels above the user.
        now: time of the decision, UTC microseconds.
        context: of the request; logged with the decision, no feature of this version depends on it.
    """
    n, strength = len(profile), prior.rate.strength
    topic_means = prior.topic_mean(profile.topic_ids)
    base = mean_seen_from(evidence, topic_means, strength)
    rate = shrink(evidence.reward_long, evidence.impressions_long, base, strength)
    session = shrink(evidence.reward_session, evidence.impressions_session, rate, strength)
    actions = profile.actions
    age_days = np.maximum(now - profile.last_action_at, 0) / MICROSECONDS_PER_DAY
    seen, seen_in_session, acted, age = np.log1p((evidence.impressions_long, evidence.impressions_session, actions, age_days)) / 5.0
    columns = (
        rate,
        session - rate,
        seen,
        seen_in_session,
        base,
        topic_means,
        5.0 * profile.topic_history,
        acted,
        _share(profile.importance),
        actions / np.maximum(profile.item_counts, 1) - 1.0,
        age,
        np.exp(-age_days / 7.0),
        np.full(n, np.log1p(n) / 5.0),
    )
    matrix = np.array(columns)  # a row per feature while it is filled: whole rows are written faster than columns
    matrix[np.abs(matrix) < _LEAST] = 0.0
    return matrix.T.astype(np.float32, order="C")


PRIOR_FEATURES = ("shrunk_rate", "session_lift", "user_rate", "topic_rate")  # those that change with the prior


def rebase(features: Floats32, sums: Evidence, totals: tuple[Floats, Floats], topic_ids: Ints, prior: Prior) -> Floats32:
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
        result[..., FEATURE_NAMES.index(name)] = np.where(np.abs(column) < _LEAST, 0.0, column)
    return result


def _share(values: Floats) -> Floats:
    total = values.sum()
    return values / total if total > 0.0 else np.full(len(values), 1.0 / max(len(values), 1))
