"""From quotas to a draw: fixed-size systematic sampling, and the exact probability of each query."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bandit.errors import InvalidValueError
from bandit.quotas import proportional
from bandit.types import Floats, Ints

_WHOLE = 1e-6  # a sum this near a whole number is one: quotas sum to k only up to rounding


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
    order = rng.permutation(len(quotas))
    whole = np.floor(quotas)
    cumulated = np.cumsum((quotas - whole)[order])
    if len(cumulated) and abs(cumulated[-1] - round(cumulated[-1])) < _WHOLE:
        cumulated[-1] = round(cumulated[-1])
    taken = np.ceil(cumulated - rng.random())
    counts: Ints = whole.astype(np.int64)
    counts[order] += np.diff(taken, prepend=0.0).astype(np.int64)
    return counts


def inclusion(weights: Floats, count: int) -> Floats:
    """Probability that each item is among `count` drawn without replacement: proportional to weight, at most 1. Shape of `weights`."""
    if count <= 0:
        return np.zeros(len(weights))
    return proportional(weights, count, np.ones(len(weights)))


def item_propensities(weights: Floats, quota: float) -> Floats:
    """Exact inclusion probability of each item of a cluster with this quota: the mean over its two possible counts."""
    floor = int(np.floor(quota))
    rest = quota - floor
    lower = inclusion(weights, floor)
    return lower if rest == 0.0 else (1.0 - rest) * lower + rest * inclusion(weights, floor + 1)
