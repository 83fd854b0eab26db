"""From quotas to a draw: fixed-size systematic sampling, and the exact probability of each query.

A request draws from some dozens of clusters and, in each, from some ten items: at that size lists of plain floats are faster than arrays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from bandit.errors import InvalidValueError
from bandit.policy.splitmix import SplitMix64
from bandit.types import Floats

_WHOLE = 1e-6  # a sum this near a whole number is one: quotas sum to k only up to rounding
_LEAST_WEIGHT = 1e-200  # of the largest: what keeps divisions by a weight finite


def draw_counts(quotas: list[float], numbers: list[float]) -> list[int]:
    """Draw counts with mean `quotas`: each is floor or ceil of its quota, and they sum to sum(quotas).

    The first number is laid over the cumulated fractions of a permutation that the others make. Whole parts are given outright, which
    leaves the draw as it is, since they only shift the grid by whole steps. A sum that is not whole gives its floor or ceil.

    Args:
        quotas: (n,), finite, >= 0.
        numbers: (n,), random and uniform within [0, 1).

    Source: Madow 1949; random order makes pairs of clusters nearly independent.
    """
    n = len(quotas)
    order = list(range(n))
    for last in range(n - 1, 0, -1):  # Fisher and Yates
        number = numbers[last]
        other = int(number * (last + 1))
        order[last], order[other] = order[other], order[last]
    counts = [0] * n
    first, cumulated, before = numbers[0] if n else 0.0, 0.0, 0
    for step in range(n):
        place = order[step]
        quota = quotas[place]
        whole = int(quota)
        cumulated += quota - whole
        if step == n - 1:
            nearest = math.floor(cumulated + 0.5)
            if abs(cumulated - nearest) < _WHOLE:
                cumulated = nearest
        passed = cumulated - first  # above -1; its ceiling is the number of grid points before it
        taken = int(passed)
        if taken < passed:
            taken += 1
        counts[place] = whole + taken - before
        before = taken
    return counts


def draw_items(
    rows: Sequence[int], quotas: list[float], counts: list[int], offsets: list[int], weights: Floats, rng: SplitMix64
) -> list[tuple[int, int, float]]:
    """Draw the items of each cluster, in the same way as `draw_counts` drew how many.

    Args:
        rows: positions of the n clusters that may be drawn from, among all m.
        quotas: expected items of each, (n,), finite, within [0, number of its items].
        counts: items of each, as `draw_counts` drew them from the quotas.
        offsets: (m + 1,); the items of cluster i lie from offsets[i] to offsets[i + 1].
        weights: of all items, finite, > 0.
        rng: the only source of randomness.

    Returns: position of the cluster among all, of the item among all, and the item's exact inclusion probability, in ascending order.

    Raises: InvalidValueError for a weight that is not a finite number above 0.
    """
    giving = [position for position in range(len(counts)) if counts[position]]
    needed = 0
    for position in giving:
        row = rows[position]
        needed += offsets[row + 1] - offsets[row]
    numbers, used = rng.random(needed), 0
    found = []
    for position in giving:
        row, count, quota = rows[position], counts[position], quotas[position]
        start, end = offsets[row], offsets[row + 1]
        floor = int(quota)
        own = [float(weights[place]) for place in range(start, end)]
        lower, upper = inclusion_probabilities(own, floor), inclusion_probabilities(own, floor + 1)
        propensities = mixed_inclusion(lower, upper, quota - floor)
        drawn = draw_counts(lower if count == floor else upper, numbers[used : used + end - start])
        used += end - start
        for place in range(end - start):
            if drawn[place]:
                propensity = propensities[place]
                found.append((row, start + place, min(propensity, 1.0)))
    return found


def mixed_inclusion(lower: list[float], upper: list[float], rest: float) -> list[float]:
    """Inclusion probabilities when a fraction `rest` of the draws takes one item more: `upper` then, else `lower`."""
    if rest == 0.0:
        return lower
    mixed = [0.0] * len(lower)
    for place in range(len(lower)):
        low, high = lower[place], upper[place]
        mixed[place] = (1.0 - rest) * low + rest * high
    return mixed


def inclusion_probabilities(weights: list[float], count: int) -> list[float]:
    """Probability that each item is among `count` drawn without replacement: min(1, alpha * weight), with the sum `count`.

    Raises: InvalidValueError for a weight that is not a finite number above 0.
    """
    n, largest = len(weights), 0.0
    for place in range(n):
        weight = weights[place]
        if not 0.0 < weight < math.inf:
            raise InvalidValueError(f"weights[{place}]", expected="a finite number above 0", received=weight)
        largest = max(largest, weight)
    if count <= 0:
        return [0.0] * n
    if count >= n:
        return [1.0] * n
    relative = [0.0] * n
    for place in range(n):
        weight = weights[place]
        relative[place] = max(weight / largest, _LEAST_WEIGHT)
    descending = sorted(relative, reverse=True)
    rests, rest = [0.0] * n, 0.0
    for place in range(n - 1, -1, -1):
        weight = descending[place]
        rest += weight
        rests[place] = rest
    alpha = count / rest
    for whole in range(n):  # how many are certain: the fewest that leave no other above 1
        rest, weight = rests[whole], descending[whole]
        alpha = (count - whole) / rest
        if alpha * weight <= 1.0:
            break
    for place in range(n):
        weight = relative[place]
        relative[place] = min(alpha * weight, 1.0)
    return relative
