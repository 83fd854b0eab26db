"""Doubly robust: the model's expectation, corrected by the weighted surprise of what was drawn.

Unbiased when either the propensities or the model are right. Source: Dudik, Langford and Li 2011, summed over a decision's queries.
"""

from __future__ import annotations

from bandit.ope.estimators.batch import Batch
from bandit.ope.estimators.state import Estimator
from bandit.types import Floats


def terms(batch: Batch) -> Floats:
    """Expected reward of each decision plus its weighted residual."""
    direct, predicted = batch.model()
    return (direct + batch.per_decision(batch.weight * (batch.reward - batch.draws * predicted)))[:, None]


def value(count: Floats | float, totals: Floats, choice: int) -> Floats:  # noqa: ARG001 -- one variant
    """Mean over the decisions."""
    return totals[..., 0] / count


DR = Estimator(name="dr", needs_model=True, ratio=False, size=1, terms=terms, value=value)
