"""Self-normalised doubly robust: `dr`, its correction normalised per drawn item as in `snips`.

Source: Thomas and Brunskill 2016 (weighted doubly robust), per item: reward adds up over queries.
"""

from __future__ import annotations

import numpy as np

from bandit.ope.estimators.batch import Batch
from bandit.ope.estimators.state import Estimator
from bandit.types import Floats


def terms(batch: Batch) -> Floats:
    """Expected reward, weighted residual, weighted draws, draws that the target expects."""
    direct, predicted = batch.model()
    residual = batch.per_decision(batch.weight * (batch.reward - batch.draws * predicted))
    return np.stack((direct, residual, batch.per_decision(batch.weight * batch.draws), batch.queries), axis=1)


def value(count: Floats | float, totals: Floats, choice: int) -> Floats:  # noqa: ARG001 -- one variant
    """Expected reward plus residual per draw times draws per decision."""
    return (totals[..., 0] + totals[..., 1] / totals[..., 2] * totals[..., 3]) / count


SNDR = Estimator(name="sndr", needs_model=True, ratio=True, size=4, terms=terms, value=value)
