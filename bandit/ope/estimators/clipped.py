"""IPS with weights clipped at a threshold, which the bias-variance bound chooses: biased, bounded, quiet.

Source: Ionides 2008 (truncated importance sampling); threshold as in Wang, Agarwal and Dudik 2017.
"""

from __future__ import annotations

import numpy as np

from bandit.ope.estimators.batch import Batch
from bandit.ope.estimators.state import Estimator
from bandit.ope.estimators.thresholds import COUNT, THRESHOLDS, least_bound, sums_of
from bandit.types import Floats


def terms(batch: Batch) -> Floats:
    """Reward under each clipped weight, then the weighted draws that clipping took away."""
    kept = np.minimum(batch.weight[:, None], THRESHOLDS)
    lost = (batch.weight[:, None] - kept) * batch.draws[:, None]
    return sums_of(batch, np.concatenate((kept * batch.reward[:, None], lost), axis=1))


def value(count: Floats | float, totals: Floats, choice: int) -> Floats:
    """Mean over the decisions, under the chosen threshold."""
    return totals[..., choice] / count


CLIPPED = Estimator(name="clipped", needs_model=False, ratio=False, size=2 * COUNT, terms=terms, value=value, choose=least_bound)
