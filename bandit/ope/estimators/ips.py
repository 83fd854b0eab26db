"""Inverse propensity scoring: V = (1/R) sum over decisions and drawn clusters of (lambda' / lambda) * reward.

Unbiased wherever the log has support. Source: Horvitz and Thompson 1952, with the exact inclusion probabilities of the draw.
"""

from __future__ import annotations

from bandit.ope.estimators.batch import Batch
from bandit.ope.estimators.state import Estimator
from bandit.types import Floats


def terms(batch: Batch) -> Floats:
    """Weighted reward of each decision."""
    return batch.per_decision(batch.weight * batch.reward)[:, None]


def value(count: Floats | float, totals: Floats, choice: int) -> Floats:  # noqa: ARG001 -- one variant
    """Mean over the decisions."""
    return totals[..., 0] / count


IPS = Estimator(name="ips", needs_model=False, ratio=False, size=1, terms=terms, value=value)
