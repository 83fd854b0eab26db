"""Small worlds of k-of-n decisions with additive reward, whose true values are known."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from bandit.ope.estimators.batch import BUCKETS, Batch
from bandit.ope.estimators.state import State
from bandit.ope.intervals import Interval


def normal_interval(state: State) -> Interval:
    """Mean of the first term plus and minus 1.96 standard errors: what its sums say when decisions are independent."""
    mean, square = state.totals[0] / state.count, state.products[0, 0] / state.count
    wide = NormalDist().inv_cdf(0.975) * np.sqrt((square - mean**2) / (state.count - 1))
    return Interval(low=mean - wide, high=mean + wide)


def every_sequence(weights: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """All ordered draws of k of n without replacement, (sequences, k), and the probability of each under these weights."""
    sequences = np.array(list(itertools.permutations(range(len(weights)), k)))
    drawn = weights[sequences]
    left = weights.sum() - np.cumsum(drawn, axis=1) + drawn
    return sequences, (drawn / left).prod(axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slates:
    """15 clusters of which 3 are drawn one after the other; each impression is engaged with at its cluster's own rate."""

    sequences: np.ndarray
    logged: np.ndarray
    target: np.ndarray
    rates: np.ndarray

    @property
    def inclusion(self) -> tuple[np.ndarray, np.ndarray]:
        n, k = len(self.rates), self.sequences.shape[1]
        logged, target = (np.bincount(self.sequences.ravel(), np.repeat(p, k), n) for p in (self.logged, self.target))
        return logged, target

    @property
    def truth(self) -> float:
        return float(self.inclusion[1] @ self.rates)

    def play(self, decisions: int, rng: np.random.Generator, users: int = BUCKETS) -> tuple[Batch, np.ndarray]:
        """A log of the logging policy, and each decision's weight as a whole sequence."""
        chosen = np.searchsorted(self.logged.cumsum(), rng.random(decisions)).clip(0, len(self.logged) - 1)
        drawn = self.sequences[chosen]
        k = drawn.shape[1]
        logged, target = self.inclusion
        batch = Batch(
            queries=np.full(decisions, float(k)),
            users=rng.integers(0, users, decisions),
            row=np.repeat(np.arange(decisions), k),
            weight=(target / logged)[drawn].ravel(),
            draws=np.ones(decisions * k),
            reward=(rng.random(drawn.shape) < self.rates[drawn]).astype(float).ravel(),
            direct=np.full(decisions, 0.9 * target @ self.rates),
            predicted=0.9 * self.rates[drawn].ravel(),
        )
        return batch, self.target[chosen] / self.logged[chosen]


def slates(seed: int = 0, n: int = 15, k: int = 3, spread: float = 0.8) -> Slates:
    rng = np.random.default_rng(seed)
    log, other = np.exp(rng.normal(0.0, spread, n)), np.exp(rng.normal(0.0, spread, n))
    sequences, logged = every_sequence(log, k)
    return Slates(sequences=sequences, logged=logged, target=every_sequence(other, k)[1], rates=rng.uniform(0.1, 0.9, n))
