"""From quotas to a draw: fixed-size systematic sampling, and the exact probability of each query.

A request draws from some dozens of clusters and, in each, from some ten items: at that size plain Python floats are several times faster
than NumPy, so the kernels take lists. Sums run in the order of the elements, so both give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bandit.errors import InvalidValueError
from bandit.types import Floats, Ints

_WHOLE = 1e-6  # a sum this near a whole number is one: quotas sum to k only up to rounding
_LEAST_WEIGHT = 1e-200  # of the largest: what keeps divisions by a weight finite


def systematic(quotas: npt.ArrayLike, rng: np.random.Generator) -> Ints:
    """Draw counts with mean `quotas`: each is floor or ceil of its quota, and they sum to sum(quotas).

    One uniform number is laid over the cumulated fractions of a random permutation; whole parts are given outright, which leaves the
    draw as it is, since they only shift the grid by whole steps. A sum that is not whole gives its floor or ceil.

    Args:
        quotas: (n,), >= 0.
        rng: the only source of randomness.

    Returns: counts, int64 (n,).

    Source: Madow 1949; random order makes pairs of clusters nearly independent.
    """
    quotas = np.asarray(quotas, np.float64)
    if not (np.isfinite(quotas).all() and (quotas >= 0.0).all()):
        raise InvalidValueError("quotas", expected="finite numbers, none below 0", received=quotas.tolist())
    return np.array(draw_counts(quotas.tolist(), rng), np.int64)


def draw_counts(quotas: Sequence[float], rng: np.random.Generator) -> list[int]:
    """`systematic` on plain numbers that are known to be finite and >= 0."""
    order = rng.permutation(len(quotas)).tolist()
    uniform = rng.random()
    counts = [int(quota) for quota in quotas]
    cumulated, before, last = 0.0, 0, len(order) - 1
    for step, place in enumerate(order):
        cumulated += quotas[place] - counts[place]
        if step == last and abs(cumulated - round(cumulated)) < _WHOLE:
            cumulated = round(cumulated)
        taken = math.ceil(cumulated - uniform)
        counts[place] += taken - before
        before = taken
    return counts


def inclusion(weights: Floats, count: int) -> Floats:
    """Probability that each item is among `count` drawn without replacement: proportional to weight, at most 1. Shape of `weights`."""
    return np.array(shares(np.asarray(weights, np.float64).tolist(), count), np.float64)


def item_propensities(weights: Floats, quota: float) -> Floats:
    """Exact inclusion probability of each item of a cluster with this quota: the mean over its two possible counts."""
    plain = np.asarray(weights, np.float64).tolist()
    floor = math.floor(quota)
    return np.array(mean_shares(shares(plain, floor), shares(plain, floor + 1), quota - floor), np.float64)


def mean_shares(lower: Sequence[float], upper: Sequence[float], rest: float) -> list[float]:
    """Inclusion probabilities when a fraction `rest` of the draws takes one item more: `upper` then, else `lower`."""
    if rest == 0.0:
        return list(lower)
    return [(1.0 - rest) * low + rest * high for low, high in zip(lower, upper, strict=True)]


def shares(weights: Sequence[float], count: int) -> list[float]:
    """`inclusion` on plain numbers: min(1, alpha * weight) with the alpha that makes them sum to `count`.

    Raises: InvalidValueError for a weight that is not a finite number above 0.
    """
    for place, weight in enumerate(weights):
        if not 0.0 < weight < math.inf:
            raise InvalidValueError(f"weights[{place}]", expected="a finite number above 0", received=weight)
    if count <= 0:
        return [0.0] * len(weights)
    if count >= len(weights):
        return [1.0] * len(weights)
    largest = max(weights)
    relative = [max(weight / largest, _LEAST_WEIGHT) for weight in weights]
    descending = sorted(relative, reverse=True)
    rests, rest = [0.0] * len(descending), 0.0
    for place in range(len(descending) - 1, -1, -1):
        rest += descending[place]
        rests[place] = rest
    alpha = count / rests[0]
    for whole, weight in enumerate(descending):  # how many are certain: the fewest that leave no other above 1
        alpha = (count - whole) / rests[whole]
        if alpha * weight <= 1.0:
            break
    return [min(alpha * weight, 1.0) for weight in relative]
