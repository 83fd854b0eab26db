"""The score of the bandit: what a cluster is predicted to earn, plus a bonus for what is not known about it."""

from __future__ import annotations

import math

import numpy as np

from bandit.model.exploration import Exploration
from bandit.model.featurize import FEATURE_NAMES
from bandit.types import Evidence, Floats, Floats32

_SHRUNK_RATE = FEATURE_NAMES.index("shrunk_rate")


def optimistic(features: Floats32, residuals: Floats, evidence: Evidence, strength: float, exploration: Exploration) -> Floats:
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
    _score(
        scores,
        features[:, _SHRUNK_RATE],
        residuals,
        evidence.impressions_long,
        evidence.impressions_session,
        evidence.draws_session,
        strength,
        exploration.impressions_per_query,
        exploration.residual_limit,
        exploration.optimism,
    )
    return scores


def _score(  # noqa: PLR0913, PLR0917 -- arrays by themselves: what compiled code takes
    scores: Floats,
    rates: Floats32,
    residuals: Floats,
    impressions_long: Floats,
    impressions_session: Floats,
    draws_session: Floats,
    strength: float,
    impressions_per_query: float,
    limit: float,
    optimism: float,
) -> None:
    for row in range(scores.shape[0]):
        rate = float(rates[row])
        residual = min(max(residuals[row], -limit), limit)
        mean = min(max(rate, 0.0), 1.0)
        in_flight = max(draws_session[row] * impressions_per_query - impressions_session[row], 0.0)
        certainty = impressions_long[row] + strength + in_flight
        scores[row] = rate + residual + optimism * math.sqrt(mean * (1.0 - mean) / certainty)
