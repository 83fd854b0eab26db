"""Whether an off-policy estimate means anything: what stands beside every value."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import erfc, exp, lgamma, log, nan, sqrt

import numpy as np

from bandit.ope.estimators.batch import Batch
from bandit.types import Floats, Ints

HISTOGRAM = np.arange(-10, 17)  # exponents of two: bin e holds weights of (2^(e-1), 2^e], the first and the last whatever lies beyond
_QUOTA_BINS = 20  # of the fraction of a quota, for the audit


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnostics:
    """Sums over decisions that merge with `+`; the properties are what to read.

    unsupported: decisions in which the target wants clusters that the log could not draw, and the queries that it wants there.
    overlap: sum of min(lambda, lambda'), the queries on which both policies agree. histogram: draws by weight, in `HISTOGRAM`.
    """

    decisions: int = 0
    draws: float = 0.0
    queries: float = 0.0
    weights: float = 0.0
    squares: float = 0.0
    largest_weight: float = 0.0
    unsupported_decisions: int = 0
    unsupported_queries: float = 0.0
    overlap: float = 0.0
    histogram: tuple[float, ...] = (0.0,) * len(HISTOGRAM)

    def __add__(self, other: Diagnostics) -> Diagnostics:
        """The diagnostics of both logs together."""
        added = {name: getattr(self, name) + getattr(other, name) for name in _ADDED}
        return Diagnostics(
            **added,
            largest_weight=max(self.largest_weight, other.largest_weight),
            histogram=tuple(a + b for a, b in zip(self.histogram, other.histogram, strict=True)),
        )

    @property
    def mean_weight(self) -> float:
        """Weighted draws by the draws that the target expects: 1 but for chance when the log supports the target."""
        return self.weights / self.queries if self.queries else nan

    @property
    def effective_sample_size(self) -> float:
        """How many draws of the target itself the log is worth: (sum w)^2 / sum w^2. Source: Kish 1965."""
        return self.weights**2 / self.squares if self.squares else 0.0

    @property
    def effective_share(self) -> float:
        """The same, as a share of the draws."""
        return self.effective_sample_size / self.draws if self.draws else 0.0

    @property
    def unsupported_decision_share(self) -> float:
        """Share of decisions without full support."""
        return self.unsupported_decisions / self.decisions if self.decisions else 0.0

    @property
    def unsupported_weight_share(self) -> float:
        """Share of the target's queries that the log could not have drawn."""
        return self.unsupported_queries / self.queries if self.queries else 0.0

    @property
    def agreement(self) -> float:
        """Share of the target's queries on which both policies agree: 1 minus the total variation between them."""
        return self.overlap / self.queries if self.queries else nan


_ADDED = [field.name for field in fields(Diagnostics) if field.name not in {"largest_weight", "histogram"}]


def diagnose(batch: Batch, logged: Floats, target: Floats) -> Diagnostics:
    """Diagnostics of a batch; `logged` and `target` are its quotas, (R, n), 0 where there is no candidate."""
    weighted = batch.weight * batch.draws
    missing = np.where(logged > 0.0, 0.0, target)
    lost = missing.sum(axis=1)
    exponents = np.clip(np.frexp(batch.weight)[1] - (np.frexp(batch.weight)[0] == 0.5), HISTOGRAM[0], HISTOGRAM[-1])
    histogram = np.bincount(exponents - HISTOGRAM[0], batch.draws, len(HISTOGRAM))
    return Diagnostics(
        decisions=len(batch),
        draws=float(batch.draws.sum()),
        queries=float(batch.queries.sum()),
        weights=float(weighted.sum()),
        squares=float((weighted * batch.weight).sum()),
        largest_weight=float(batch.weight.max(initial=0.0)),
        unsupported_decisions=int((lost > 1e-9).sum()),
        unsupported_queries=float(lost.sum()),
        overlap=float(np.minimum(logged, target).sum()),
        histogram=tuple(histogram.tolist()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """Whether a log was drawn from the propensities that it names; sums that merge with `+`.

    Two tests that need no rewards: drawn counts against quotas in bins of the quota (chi-squared), and the sum of 1 / quota over what
    was drawn against the number of candidates, which it equals in expectation.
    """

    drawn: Floats
    expected: Floats
    variance: Floats
    inverse: float
    candidates: float
    inverse_variance: float

    def __add__(self, other: Audit) -> Audit:
        """The audit of both logs together."""
        return Audit(**{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(Audit)})

    @property
    def chi_squared(self) -> float:
        """Sum over bins of (drawn - expected)^2 / variance; large when the draws do not follow the quotas."""
        used = self.variance > 0.0
        return float(((self.drawn - self.expected)[used] ** 2 / self.variance[used]).sum())

    @property
    def degrees(self) -> int:
        """Bins that were used."""
        return int((self.variance > 0.0).sum())

    @property
    def chi_squared_p(self) -> float:
        """Chance of a larger chi-squared when the quotas are true; 1 without anything to test."""
        return chi_squared_tail(self.chi_squared, self.degrees)

    @property
    def inverse_ratio(self) -> float:
        """Sum of 1 / quota over draws by the number of candidates; about 1."""
        return self.inverse / self.candidates if self.candidates else nan

    @property
    def inverse_z(self) -> float:
        """How many standard deviations that sum lies from the number of candidates."""
        return (self.inverse - self.candidates) / sqrt(self.inverse_variance) if self.inverse_variance > 0.0 else 0.0


def audit(logged: Floats, draws: Floats) -> Audit:
    """Audit of decisions whose quotas are known of every candidate: `logged` and `draws` (R, n), 0 where there is none.

    A cluster gets the floor of its quota or one more; the variance of that is known, and within a decision draws repel each other, so
    that the tests err on the side of silence. Quotas below 1e-3 are left out of the second: one of their draws outweighs all others.
    """
    fraction = logged - np.floor(logged)
    bins = np.minimum((fraction * _QUOTA_BINS).astype(np.int64), _QUOTA_BINS - 1).ravel()
    variance = fraction * (1.0 - fraction)
    usual = logged > 1e-3
    safe = np.where(usual, logged, 1.0)
    return Audit(
        drawn=_counted(bins, draws),
        expected=_counted(bins, logged),
        variance=_counted(bins, variance),
        inverse=float(np.where(usual, draws / safe, 0.0).sum()),
        candidates=float(usual.sum()),
        inverse_variance=float(np.where(usual, variance / safe**2, 0.0).sum()),
    )


def _counted(bins: Ints, values: Floats) -> Floats:
    return np.bincount(bins, values.ravel(), _QUOTA_BINS).astype(np.float64)


def audit_single_actions(logged: Floats, actions: Floats) -> Audit:
    """Audit of a plain log, which names the probability of the chosen action only: (R,) probabilities and numbers of actions."""
    inverse = 1.0 / logged
    none = np.zeros(_QUOTA_BINS)
    spread = max(float((inverse**2 - actions**2).sum()), 0.0)
    return Audit(
        drawn=none, expected=none, variance=none, inverse=float(inverse.sum()), candidates=float(actions.sum()), inverse_variance=spread
    )


def chi_squared_tail(value: float, degrees: int) -> float:
    """Chance that a chi-squared variable of this many degrees of freedom is larger, by the finite sums for whole degrees."""
    if degrees <= 0:
        return 1.0
    half = value / 2.0
    if half <= 0.0:
        return 1.0
    start, total = (0.5, erfc(sqrt(half))) if degrees % 2 else (0.0, 0.0)
    steps = np.arange(start, degrees / 2.0)
    total += sum(exp(step * log(half) - half - lgamma(step + 1.0)) for step in steps.tolist())
    return min(total, 1.0)
