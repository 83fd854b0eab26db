"""The score of the bandit: what a cluster is predicted to earn, plus a bonus for what is not known about it."""

from __future__ import annotations

import math

import numpy as np

from bandit.model.exploration import Exploration
from bandit.model.featurize import FEATURE_NAMES
from bandit.types import Floats, Floats32, Sums

_SHRUNK_RATE = FEATURE_NAMES.index("shrunk_rate")


def optimistic(features: Floats32, residuals: Floats, evidence: Sums, strength: float, exploration: Exploration) -> Floats:
    """Shrunk rate, plus the learned residual within its limit, plus `optimism` standard deviations, (n,); unit reward per impression.

    The deviation is that of a rate of as many impressions as were seen, are assumed by the prior, or are in flight: still expected from
    queries already drawn, so that a cluster just drawn is not drawn again for the same lack of evidence, which is what breaks optimism
    when feedback is late.

    Args:
        features: float32 (n, d), in the order of `FEATURE_NAMES`.
        residuals: the model's, (n,), reward per impression.
        evidence: of the same clusters.
        strength: of the prior, in impressions.
        exploration: what may be spent.
    """
    scores = np.empty(len(residuals))
    _score(scores, features[:, _SHRUNK_RATE], residuals, evidence.values, strength, exploration)
    return scores


def _score(scores: Floats, rates: Floats32, residuals: Floats, sums: Floats, strength: float, exploration: Exploration) -> None:
    """Write the scores, (n,); `sums` are those of `Sums`, (5, n)."""
    impressions_session, impressions_long, draws_session = sums[0], sums[2], sums[4]
    impressions_per_query, limit, optimism = exploration.impressions_per_query, exploration.residual_limit, exploration.optimism
    for row in range(scores.shape[0]):
        rate = float(rates[row])
        residual = min(max(residuals[row], -limit), limit)
        mean = min(max(rate, 0.0), 1.0)
        in_flight = max(draws_session[row] * impressions_per_query - impressions_session[row], 0.0)
        certainty = impressions_long[row] + strength + in_flight
        scores[row] = rate + residual + optimism * math.sqrt(mean * (1.0 - mean) / certainty)
