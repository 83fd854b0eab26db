"""Switch: doubly robust where the weight is at most a threshold, the model alone beyond it; the bias-variance bound chooses.

Source: Wang, Agarwal and Dudik, Optimal and adaptive off-policy evaluation in contextual bandits, 2017.
"""

from __future__ import annotations

import numpy as np

from bandit.ope.estimators.batch import Batch
from bandit.ope.estimators.state import Estimator
from bandit.ope.estimators.thresholds import COUNT, THRESHOLDS, least_bound, sums_of
from bandit.types import Floats


def terms(batch: Batch) -> Floats:
    """Doubly robust reward under each threshold, then the weighted draws that were left to the model."""
    direct, predicted = batch.model()
    residual = (batch.weight * (batch.reward - batch.draws * predicted))[:, None]
    kept = batch.weight[:, None] <= THRESHOLDS
    result = sums_of(batch, np.concatenate((residual * kept, (batch.weight * batch.draws)[:, None] * ~kept), axis=1))
    result[:, :COUNT] += direct[:, None]
    return result


def value(count: Floats | float, totals: Floats, choice: int) -> Floats:
    """Mean over the decisions, under the chosen threshold."""
    return totals[..., choice] / count


SWITCH = Estimator(name="switch", needs_model=True, ratio=False, size=2 * COUNT, terms=terms, value=value, choose=least_bound)
