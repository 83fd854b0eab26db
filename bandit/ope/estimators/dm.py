"""Direct method: what a model of the reward expects of the target's quotas. No variance to speak of, and all of the model's bias."""

from __future__ import annotations

from bandit.ope.estimators.batch import Batch
from bandit.ope.estimators.state import Estimator
from bandit.types import Floats


def terms(batch: Batch) -> Floats:
    """Expected reward of each decision."""
    return batch.model()[0][:, None]


def value(count: Floats | float, totals: Floats, choice: int) -> Floats:  # noqa: ARG001 -- one variant
    """Mean over the decisions."""
    return totals[..., 0] / count


DM = Estimator(name="dm", needs_model=True, ratio=False, size=1, terms=terms, value=value)
