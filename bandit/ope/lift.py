"""How much more a target earns than a baseline, valued on the same log: the difference of each decision, which pairs them."""

from __future__ import annotations

from bandit.errors import InvalidValueError
from bandit.ope.estimators.batch import Batch
from bandit.ope.estimators.state import Estimator, State, state_of
from bandit.ope.intervals import UNKNOWN, Interval, confidence_sequence


def differences(estimator: Estimator, target: Batch, baseline: Batch) -> State:
    """The state of target minus baseline, one term a decision.

    Args:
        estimator: one whose value is a mean of decisions.
        target: decisions valued for the target.
        baseline: the same decisions valued for the baseline.
    """
    if estimator.ratio or estimator.size != 1:
        raise InvalidValueError("estimator", expected="one whose value is a mean of one term a decision", received=estimator.name)
    return state_of(estimator.terms(target) - estimator.terms(baseline), target.users)


def absolute_lift(state: State, alpha: float) -> Interval:
    """A confidence sequence of the difference, reward per decision.

    Its range is that of the differences seen so far. It is wider than what comes for as long as the largest weight and the largest
    reward of the log have been seen.
    """
    if not state.count:
        return UNKNOWN
    low, high = min(float(state.least[0]), 0.0), max(float(state.greatest[0]), 0.0)
    return confidence_sequence(state, low, high, alpha) if low < high else Interval(low=0.0, high=0.0)


def relative_lift(absolute: Interval, baseline: float) -> Interval:
    """The same as a share of what the baseline earns; unbounded when that is nothing."""
    scale = abs(baseline)
    if not scale > 0.0:
        return Interval(low=0.0, high=0.0) if absolute.low == absolute.high == 0.0 else UNKNOWN
    return Interval(low=absolute.low / scale, high=absolute.high / scale)
