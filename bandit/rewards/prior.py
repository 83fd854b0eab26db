"""Rates shrunk towards the level above: global, topic, user, cluster."""

from __future__ import annotations

import numpy as np

from bandit.types import Floats, Ints, Prior, Rate


def engagement_rate(engagements: Floats | float, impressions: Floats | float, prior: Rate) -> Floats:
    """Shrink engagement rates towards the prior: (engagements + strength * mean) / (impressions + strength).

    Args:
        engagements: decayed reward, any shape, may be negative (hides).
        impressions: decayed impressions, same shape, >= 0.
        prior: mean and strength (in impressions) of the level above.

    Returns: rates, unit reward per impression, same shape.

    Source: beta-binomial posterior mean; Efron and Morris 1975.
    """
    return shrink(np.asarray(engagements, np.float64), np.asarray(impressions, np.float64), prior.mean, prior.strength)


def shrink(engagements: Floats, impressions: Floats, mean: Floats | float, strength: float) -> Floats:
    """`engagement_rate` with a prior mean of its own for each element."""
    rates: Floats = (engagements + strength * mean) / (impressions + strength)
    return rates


def fit_prior(topic_ids: Ints, reward: Floats, impressions: Floats, strength: float) -> Prior:
    """Global rate and topic means of a whole population of clusters; every array one element per cluster.

    With no impressions at all the global mean is 0.
    """
    total = float(impressions.sum())
    rate = Rate(mean=float(reward.sum()) / total if total > 0.0 else 0.0, strength=strength)
    topics, index = np.unique(topic_ids, return_inverse=True)
    reward_of, impressions_of = (np.bincount(index, sums, len(topics)).astype(np.float64) for sums in (reward, impressions))
    means = engagement_rate(reward_of, impressions_of, rate)
    return Prior(rate=rate, topic_means=dict(zip(topics.tolist(), means.tolist(), strict=True)))
