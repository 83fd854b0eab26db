"""Self-normalised per drawn item: weighted reward by weighted draws, times the draws that the target expects of a decision.

Its bias vanishes with 1/R, its variance is lower than that of `ips`, and it never leaves the range of the rewards.
Source: Swaminathan and Joachims 2015, per item instead of per decision: reward adds up over queries.
"""

from __future__ import annotations

import numpy as np

from bandit.ope.estimators.batch import Batch
from bandit.ope.estimators.state import Estimator
from bandit.types import Floats


def terms(batch: Batch) -> Floats:
    """Weighted reward, weighted draws, draws that the target expects."""
    return np.stack(
        (batch.per_decision(batch.weight * batch.reward), batch.per_decision(batch.weight * batch.draws), batch.queries), axis=1
    )


def value(count: Floats | float, totals: Floats, choice: int) -> Floats:  # noqa: ARG001 -- one variant
    """Reward per draw times draws per decision."""
    return totals[..., 0] / totals[..., 1] * totals[..., 2] / count


SNIPS = Estimator(name="snips", needs_model=False, ratio=True, size=3, terms=terms, value=value)
