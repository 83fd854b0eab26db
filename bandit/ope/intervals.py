"""How far an estimate may be off: intervals from an estimator's state.

All are two-sided, of coverage 1 - alpha. `confidence_sequence` alone may be looked at again and again.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, sqrt

import numpy as np

from bandit.errors import InvalidValueError
from bandit.ope.estimators.state import Estimator, State
from bandit.types import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A range that holds the true value, with the coverage that was asked for."""

    low: float
    high: float


UNKNOWN = Interval(low=-np.inf, high=np.inf)  # what is known before there is anything to know from


def resample(state: State, rng: np.random.Generator, resamples: int = 1000) -> Floats:
    """How often each bucket of users stands in each resample, (resamples, BUCKETS); one draw serves every estimator of a log."""
    there = np.flatnonzero(state.decisions)
    drawn = np.zeros((resamples, len(state.decisions)))
    if len(there):
        drawn[:, there] = rng.multinomial(len(there), np.full(len(there), 1.0 / len(there)), size=resamples)
    return drawn


def percentiles(estimator: Estimator, state: State, drawn: Floats, alpha: float = 0.05) -> Interval:
    """The bootstrap: percentiles of the value over resampled users, who are independent, while their decisions are not.

    Users without decisions stay out. A log of few users knows little: with fewer than two the interval is unbounded.
    """
    if np.count_nonzero(state.decisions) < 2:
        return UNKNOWN
    with np.errstate(divide="ignore", invalid="ignore"):
        values = estimator.value(drawn @ state.decisions, drawn @ state.by_user, estimator.choose(state))
    low, high = np.nanquantile(values, [alpha / 2.0, 1.0 - alpha / 2.0])
    return Interval(low=float(low), high=float(high))


def confidence_sequence(state: State, low: float, high: float, alpha: float = 0.05) -> Interval:
    """Holds the mean of the first term at every number of decisions at once: look after each, stop when you like.

    The terms may depend on the past, as those of an adaptive logger do; what is held is then the mean of their expectations. The
    variance is taken about 0, which every order of the log agrees on: states merge, and a difference of two policies, whose mean is
    near 0, loses nothing.

    Args:
        state: of terms that each lie within [low, high], low <= 0 <= high.
        low: a bound that was known beforehand; it governs the lower end only, `high` the upper end.
        high: likewise.
        alpha: chance that the sequence is ever wrong.

    Source: Howard, Ramdas, McAuliffe and Sekhon, Time-uniform, nonparametric, nonasymptotic confidence sequences, 2021: theorem 4
    (empirical Bernstein, here with the constant prediction 0) with the polynomial stitched boundary, equation 10, eta = 2, s = 1.4.
    """
    if not (-np.inf < low <= 0.0 <= high < np.inf and low < high):
        raise InvalidValueError("range of the terms", expected="low <= 0 <= high, finite, not both 0", received=(low, high))
    if not state.count:
        return UNKNOWN
    down, up = sequence_bounds(np.array([state.count]), np.array([state.totals[0]]), np.array([state.products[0, 0]]), low, high, alpha)
    return Interval(low=float(down[0]), high=float(up[0]))


def sequence_bounds(counts: Floats, totals: Floats, squares: Floats, low: float, high: float, alpha: float) -> tuple[Floats, Floats]:
    """Both ends of `confidence_sequence` after each of several numbers of decisions, whose sums and sums of squares are given."""
    least = _LEAST_SCALE * (high - low)
    down, up = (_boundary(squares, max(scale, least), alpha / 2.0) / counts for scale in (-low, high))
    return totals / counts - down, totals / counts + up


_ETA, _S, _ZETA = 2.0, 1.4, 3.1055472779775806  # the last is Riemann's zeta of _S
_K1, _K2 = (_ETA**0.25 + _ETA**-0.25) / sqrt(2.0), (sqrt(_ETA) + 1.0) / 2.0
_LEAST_SCALE = 0.01  # of the whole range: a larger scale than need be is still valid, and stitching has to start somewhere


def _boundary(squares: Floats, scale: float, alpha: float) -> Floats:
    """How far sums may stray from their means when their terms have these squares; stitching starts at the scale's square."""
    v = np.maximum(squares, scale * scale)
    level = _S * np.log(np.log(_ETA * v / (scale * scale))) + log(_ZETA / (alpha * log(_ETA) ** _S))
    return np.asarray(np.sqrt(_K1 * _K1 * v * level + (_K2 * scale * level) ** 2) + _K2 * scale * level, np.float64)
