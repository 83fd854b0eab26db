"""The gate: is a policy better than another, not better, or can this log not tell? Each verdict with its reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bandit.errors import InvalidValueError
from bandit.ope.diagnostics import Audit, Diagnostics
from bandit.ope.intervals import Interval

BETTER: Literal["better"] = "better"
NOT_BETTER: Literal["not better"] = "not better"
CANNOT_TELL: Literal["cannot tell"] = "cannot tell"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What a log must be for its verdict to count.

    decisions: fewest; effective_sample and effective_share: least number of draws, and share of the draws, that the weighted log is
    worth; mean_weight_error: how far the mean weight may be from 1; largest_weight_share: most of the whole weight that one draw may
    carry; unsupported_share: most of the target's queries that the log could not have drawn; audit_p: chance below which the log
    contradicts its own propensities. alpha: chance that the interval of the lift is ever wrong. worthwhile_lift: a relative lift that
    is certainly below it is not better.
    """

    decisions: int
    effective_sample: float
    effective_share: float
    mean_weight_error: float
    largest_weight_share: float
    unsupported_share: float
    audit_p: float
    alpha: float
    worthwhile_lift: float

    def __post_init__(self) -> None:
        """Refuse thresholds that would let anything, or nothing, through."""
        if not 0.0 < self.alpha < 1.0:
            raise InvalidValueError("gate.alpha", expected="within (0, 1)", received=self.alpha)
        for name in ("decisions", "effective_sample", "effective_share", "mean_weight_error", "largest_weight_share", "unsupported_share"):
            if not getattr(self, name) >= 0.0:
                raise InvalidValueError(f"gate.{name}", expected="0 or more", received=getattr(self, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`better`, `not better` or `cannot tell`, and why."""

    verdict: Literal["better", "not better", "cannot tell"]
    reasons: Sequence[str]


_INVERSE_Z = 5.0  # standard deviations that the sum of inverse propensities may be off


def judge(gate: Gate, found: Diagnostics, checked: Audit, lift: Interval, absolute: Interval, notes: Sequence[str] = ()) -> Verdict:
    """The verdict on a target.

    Args:
        gate: thresholds.
        found: diagnostics of the target.
        checked: audit of the log.
        lift: relative gain over the baseline, an interval that holds at every look.
        absolute: the same gain in reward per decision, for the reasons.
        notes: reasons why this log cannot be used, found on the way; with any of them nothing can be told.
    """
    doubts = [*notes, *_doubts(gate, found, checked)]
    if doubts:
        return Verdict(verdict=CANNOT_TELL, reasons=doubts)
    span = f"{lift.low:+.2%} to {lift.high:+.2%} ({absolute.low:+.4g} to {absolute.high:+.4g} reward per decision)"
    if lift.low > 0.0:
        return Verdict(verdict=BETTER, reasons=[f"the lift is {span}: above 0 at {1.0 - gate.alpha:.0%}, however often it is looked at"])
    if lift.high < gate.worthwhile_lift:
        why = "below 0" if lift.high < 0.0 else f"below {gate.worthwhile_lift:.2%}, the least that is worthwhile"
        return Verdict(verdict=NOT_BETTER, reasons=[f"the lift is {span}: {why}"])
    return Verdict(verdict=CANNOT_TELL, reasons=[f"the lift is {span}: {found.decisions:,} decisions do not tell it from 0"])


def _doubts(gate: Gate, found: Diagnostics, checked: Audit) -> list[str]:
    if not found.decisions:
        return ["the log is empty: no decision can be used"]
    reasons = []
    if found.decisions < gate.decisions:
        reasons.append(f"{found.decisions:,} decisions, {gate.decisions:,} are asked for")
    effective = found.effective_sample_size
    if effective < gate.effective_sample or found.effective_share < gate.effective_share:
        least = max(gate.effective_sample, gate.effective_share * found.draws)
        reasons.append(f"effective sample size {effective:,.0f} of {found.draws:,.0f} draws, {least:,.0f} are asked for")
    if not abs(found.mean_weight - 1.0) <= gate.mean_weight_error:
        reasons.append(f"mean weight {found.mean_weight:.3g}, expected 1 within {gate.mean_weight_error:g}")
    if found.weights and found.largest_weight > gate.largest_weight_share * found.weights:
        share = found.largest_weight / found.weights
        reasons.append(f"one draw carries {share:.0%} of the weight ({found.largest_weight:,.0f}), {gate.largest_weight_share:.0%} may")
    if found.unsupported_weight_share > gate.unsupported_share:
        lost = f"{found.unsupported_weight_share:.1%} of its queries in {found.unsupported_decision_share:.1%} of the decisions"
        reasons.append(f"the target wants clusters that the log never had: {lost}")
    if checked.chi_squared_p < gate.audit_p:
        counts = f"chi-squared {checked.chi_squared:.0f} on {checked.degrees} degrees of freedom"
        reasons.append(f"the log contradicts its propensities: drawn counts do not follow the quotas, {counts}")
    if abs(checked.inverse_z) > _INVERSE_Z:
        ratio = f"the sum of 1/propensity over draws is {checked.inverse_ratio:.3g} of the number of candidates"
        reasons.append(f"the log contradicts its propensities: {ratio}, {checked.inverse_z:+.1f} standard deviations")
    return reasons
