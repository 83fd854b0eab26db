"""Pseudo-inverse: weights of a decision's slots added, not multiplied; for logs that know one reward for the whole decision.

V = (1/R) sum over decisions of (1 + sum over draws of (weight - 1)) * total reward: exact for slots that were drawn independently and
rewards that add up over slots, and `ips` when a decision has one action. Source: Swaminathan et al., Off-policy evaluation for slate
recommendation, 2017, example 4.
"""

from __future__ import annotations

from bandit.ope.estimators.batch import Batch
from bandit.ope.estimators.state import Estimator
from bandit.types import Floats


def terms(batch: Batch) -> Floats:
    """Total reward of each decision, weighted."""
    weight = 1.0 + batch.per_decision(batch.draws * (batch.weight - 1.0))
    return (weight * batch.per_decision(batch.reward))[:, None]


def value(count: Floats | float, totals: Floats, choice: int) -> Floats:  # noqa: ARG001 -- one variant
    """Mean over the decisions."""
    return totals[..., 0] / count


PSEUDO_INVERSE = Estimator(name="pseudo_inverse", needs_model=False, ratio=False, size=1, terms=terms, value=value)
