"""What an estimator sees of some logged decisions: numbers of decisions and of what was drawn in them, for one target policy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bandit.errors import InvalidPropensityError, InvalidValueError
from bandit.types import Floats, Ints

BUCKETS = 4096  # users are summed in buckets, so that a state has one size however many users there are


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """R decisions and the D clusters that were drawn in them, valued for one target policy.

    Of each decision, (R,): `queries`, the number that the target expects to draw; `direct`, the reward that a model of the reward
    expects of the target (None without a model); `users`, the bucket of the decision's user, within [0, BUCKETS).
    Of each drawn cluster, (D,): `row`, its decision, ascending; `weight` = lambda' / lambda; `draws`, how many queries it gave;
    `reward`, what all of those earned; `predicted`, what the model expects of one draw (None without a model).
    """

    queries: Floats
    users: Ints
    row: Ints
    weight: Floats
    draws: Floats
    reward: Floats
    direct: Floats | None = None
    predicted: Floats | None = None

    def __post_init__(self) -> None:
        """Refuse arrays that do not belong together, and weights and rewards that are not finite."""
        decisions, drawn = len(self.queries), len(self.row)
        if len(self.users) != decisions or not len(self.weight) == len(self.draws) == len(self.reward) == drawn:
            raise InvalidValueError("Batch", expected=f"arrays of {decisions} decisions and of {drawn} drawn clusters", received="others")
        if (self.direct is None) != (self.predicted is None):
            raise InvalidValueError("Batch.direct and Batch.predicted", expected="both or neither", received="one of them")
        for name in ("weight", "draws", "reward", "predicted"):
            values = getattr(self, name)
            if values is not None and not np.isfinite(values).all():
                raise InvalidValueError(f"Batch.{name}", expected="finite numbers", received=float(values[~np.isfinite(values)][0]))

    def __len__(self) -> int:
        """Number of decisions."""
        return len(self.queries)

    def model(self) -> tuple[Floats, Floats]:
        """`direct` and `predicted`.

        Raises: InvalidValueError without a model of the reward.
        """
        if self.direct is None or self.predicted is None:
            raise InvalidValueError("Batch.predicted", expected="rewards that a model predicts", received=None)
        return self.direct, self.predicted

    def per_decision(self, values: Floats) -> Floats:
        """Sum of the drawn clusters' values within each decision, (D,) to (R,)."""
        return np.bincount(self.row, values, len(self.queries)).astype(np.float64)


def single_actions(
    logged: Floats, target: Floats, reward: Floats, users: Ints | None = None, importance: Floats | None = None, **model: Floats
) -> Batch:
    """A plain log as a batch: one action a decision, with the probability that either policy gives it; every array (R,).

    Args:
        logged: probability under the policy that chose, within (0, 1].
        target: probability of the same action under the target, within [0, 1].
        reward: what the action earned.
        users: bucket of each decision's user; each decision its own when None.
        importance: how many decisions each stands for, of mean 1; 1 each when None.
        model: `direct` and `predicted`, for the estimators that need them.

    Raises: InvalidPropensityError naming the first bad row.
    """
    logged, target, reward = (np.asarray(array, np.float64) for array in (logged, target, reward))
    refuse_bad_propensities(logged[:, None], np.ones((len(logged), 1)), np.ones((len(logged), 1)))
    if not ((target >= 0.0) & (target <= 1.0)).all():
        row = int(np.argmin((target >= 0.0) & (target <= 1.0)))
        raise InvalidPropensityError(row, f"the target's probability is {target[row]}, expected within [0, 1]")
    rows = np.arange(len(logged))
    importance = np.ones(len(logged)) if importance is None else importance
    return Batch(
        queries=importance,
        users=rows % BUCKETS if users is None else users,
        row=rows,
        weight=importance * target / logged,
        draws=np.ones(len(logged)),
        reward=reward,
        **model,
    )


def refuse_bad_propensities(logged: Floats, draws: Floats, caps: Floats, total: Floats | None = None) -> None:
    """Refuse logged quotas that nothing can have been drawn from.

    Args:
        logged: (R, n) quotas, 0 where there is no candidate or where the logging policy gave none.
        draws: (R, n) queries drawn.
        caps: (R, n) the most that could be drawn.
        total: (R,) what the quotas must sum to; unchecked when None.

    Raises: InvalidPropensityError with the first bad row and what is wrong with it.
    """
    valid = np.isfinite(logged) & (logged >= 0.0) & (logged <= caps * (1.0 + 1e-9)) & ((logged > 0.0) | (draws == 0.0))
    if not valid.all():
        row, place = (int(index) for index in np.argwhere(~valid)[0])
        wanted = f"a number above 0 and at most {caps[row, place]:g}"
        raise InvalidPropensityError(row, f"candidate {place}: the propensity is {logged[row, place]}, expected {wanted}")
    if total is not None:
        sums = logged.sum(axis=1)
        wrong = ~(np.abs(sums - total) <= 1e-6 * np.maximum(total, 1.0))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise InvalidPropensityError(row, f"the quotas sum to {sums[row]:g}, expected {total[row]:g}")
