"""From scores to quotas: how many queries each cluster may expect of one request.

Both functions return lambda, float64 (n,), with sum(lambda) = min(k, sum(caps)) and 0 < lambda_i <= caps_i.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from bandit.errors import InvalidValueError
from bandit.types import Floats, Ints

_MAX_NEWTON_STEPS = 100
_LEAST_WEIGHT = 1e-200  # of the largest: what keeps divisions by a weight finite
_ROUNDING = 1e-12  # a cluster this near its cap is left free: what remains for the others would be rounding only


def proportional(weights: npt.ArrayLike, k: float, caps: npt.ArrayLike) -> Floats:
    """Quotas in proportion to the weights, water-filled at the caps: lambda_i = min(caps_i, alpha * weights_i).

    Args:
        weights: (n,), > 0, any unit.
        k: queries of the request, > 0.
        caps: (n,), > 0; the most queries that each cluster can give.

    Raises: InvalidValueError naming the argument and its first bad element.
    """
    w, cap, k = _positive("weights", weights), _positive("caps", caps), _checked_k(k)
    _same_length(weights=w, caps=cap)
    quotas = np.empty(len(w))
    _water_fill(quotas, np.maximum(w / w.max(), _LEAST_WEIGHT), cap, k)
    return quotas


def budgeted(scores: npt.ArrayLike, budgets: npt.ArrayLike, k: float, caps: npt.ArrayLike) -> Floats:
    """Quotas that give up at most sum(budgets) of the greedy value, in the unit of the scores.

    Maximises sum(lambda * scores) + sum(budgets * log(lambda)); so lambda_i = min(caps_i, budgets_i / (nu - scores_i)) with one nu
    for all, found by Newton's method on 1 / sum, which is concave and nearly straight.

    Args:
        scores: (n,), predicted reward per query or per impression, any sign.
        budgets: (n,), > 0; the exploration that each cluster may cost.
        k: queries of the request, > 0.
        caps: (n,), > 0; the most queries that each cluster can give.

    Raises: InvalidValueError naming the argument and its first bad element.

    Source: inverse-gap weighting, Foster and Rakhlin 2020; its log-barrier form, Foster, Gentile, Mohri and Zimmert 2020.
    """
    s, b, cap, k = _finite("scores", scores), _positive("budgets", budgets), _positive("caps", caps), _checked_k(k)
    _same_length(scores=s, budgets=b, caps=cap)
    quotas = np.empty(len(s))
    _solve_budgeted(quotas, s, b, cap, k)
    return quotas


def budget_by_evidence(
    scores: Floats, impressions: Floats, k: float, caps: Floats, *, strength: float, share: float, least: float
) -> Floats:
    """`budgeted` quotas that give up at most `share` of the greedy value of the scores, spent where evidence is thin.

    Args:
        scores: (n,).
        impressions: behind each score, (n,), >= 0; a cluster's part of the budget is proportional to 1 / (impressions + strength).
        k: queries of the request, > 0.
        caps: (n,), > 0.
        strength: impressions that the prior is worth, > 0.
        share: within (0, 1].
        least: what the greedy value counts as, at least; > 0.

    Raises: InvalidValueError as `budgeted`.
    """
    n = len(scores)
    if not n == len(impressions) == len(caps):
        _same_length(scores=scores, impressions=impressions, caps=caps)
    quotas, budgets = np.empty(n), np.empty(n)
    whole = share * max(greedy_value(scores, k, caps), least)
    if _fill_budgets(budgets, scores, impressions, caps, strength, whole) and k > 0.0:
        _solve_budgeted(quotas, scores, budgets, caps, k)
        return quotas
    return budgeted(scores, budgets, k, caps)  # which names what is wrong


def greedy_value(scores: Floats, k: float, caps: Floats) -> float:
    """Largest sum(lambda * scores) over 0 <= lambda <= caps, sum(lambda) = min(k, sum(caps)): what exploration is measured against."""
    return _greedy(np.zeros(len(scores)), scores, caps, k)


def _greedy(passed: Floats, scores: Floats, caps: Floats, k: float) -> float:
    """The best of what is left, again and again; `passed` comes zeroed. Some k rounds: fewer than sorting would take."""
    n, value, rest = scores.shape[0], 0.0, k
    for _ in range(n):
        best = -1
        for row in range(n):
            if passed[row] == 0.0 and (best < 0 or scores[row] > scores[best]):
                best = row
        passed[best] = 1.0
        taken = min(caps[best], rest)
        value += taken * scores[best]
        rest -= taken
        if not rest > 0.0:
            break
    return value


def _fill_budgets(budgets: Floats, scores: Floats, impressions: Floats, caps: Floats, strength: float, whole: float) -> bool:
    """Fill the budgets: parts of the whole, in proportion to 1 / (impressions + strength). False when no quotas can be made of this."""
    n, total, sound = budgets.shape[0], 0.0, True
    for row in range(n):
        budgets[row] = 1.0 / (impressions[row] + strength)
        total += budgets[row]
    for row in range(n):
        budgets[row] *= whole / total
        sound = sound and -math.inf < scores[row] < math.inf and 0.0 < budgets[row] < math.inf and 0.0 < caps[row] < math.inf
    return sound


def query_caps(offsets: Ints, most: float) -> Floats:
    """What each cluster can give at most, (n,): one query for each of its items, which lie from offsets[i] to offsets[i + 1]."""
    caps = np.empty(len(offsets) - 1)
    _fill_caps(caps, offsets, most)
    return caps


def _fill_caps(caps: Floats, offsets: Ints, most: float) -> None:
    for row in range(caps.shape[0]):
        items = float(offsets[row + 1] - offsets[row])
        caps[row] = min(items, most)


def is_distribution(quotas: Floats, k: float, caps: Floats) -> bool:
    """Whether the quotas are positive, and sum to min(k, sum(caps))."""
    total, most, positive = 0.0, 0.0, True
    for row in range(quotas.shape[0]):
        positive = positive and quotas[row] > 0.0
        total += quotas[row]
        most += caps[row]
    expected = min(k, most)
    return positive and abs(total - expected) <= 1e-9 * max(expected, 1.0)


def _mark_uncapped(quotas: Floats, caps: Floats, k: float) -> bool:
    """Whether k is below the sum of the caps. If so all quotas are -1, for: not at its cap yet; else they are the caps."""
    n, most = quotas.shape[0], 0.0
    for row in range(n):
        most += caps[row]
    for row in range(n):
        quotas[row] = -1.0 if k < most else caps[row]
    return k < most


def _water_fill(quotas: Floats, weights: Floats, caps: Floats, k: float) -> None:
    """Fill the quotas of `proportional`.

    Who would get more than its cap gets the cap, and what is left is shared again: others can only get more then.
    """
    n, rest, total, again = quotas.shape[0], k, 0.0, _mark_uncapped(quotas, caps, k)
    while again:
        again, total, left = False, 0.0, rest
        for row in range(n):
            if quotas[row] < 0.0:
                total += weights[row]
        for row in range(n):
            if quotas[row] < 0.0 and left * (weights[row] / total) > caps[row] and rest - caps[row] > k * _ROUNDING:
                quotas[row] = caps[row]
                rest -= caps[row]
                again = True
    for row in range(n):
        if quotas[row] < 0.0:
            quotas[row] = min(rest * (weights[row] / total), caps[row])


def _solve_budgeted(quotas: Floats, scores: Floats, budgets: Floats, caps: Floats, k: float) -> None:  # noqa: PLR0912 -- loops that are compiled
    """Fill the quotas of `budgeted`; capped in rounds like `_water_fill`."""
    n, rest, again = quotas.shape[0], k, _mark_uncapped(quotas, caps, k)
    nu, top, total = 0.0, 0.0, 0.0
    while again:
        again, left, top, nu, total = False, rest, -math.inf, 0.0, 0.0
        for row in range(n):
            if quotas[row] < 0.0:
                top = max(top, scores[row])
        for row in range(n):  # nu counts from the best score that is left; starts below the root, where the sum is too large
            if quotas[row] < 0.0:
                nu = max(nu, budgets[row] / left - (top - scores[row]))
        for _ in range(_MAX_NEWTON_STEPS):
            total, slope = 0.0, 0.0
            for row in range(n):
                if quotas[row] < 0.0:
                    inverse = 1.0 / (nu + (top - scores[row]))
                    total += budgets[row] * inverse
                    slope += budgets[row] * inverse * inverse
            step = total * (total / left - 1.0) / slope
            nu += step
            if step <= 1e-15 * nu:
                break
        total = 0.0
        for row in range(n):
            if quotas[row] < 0.0:
                total += budgets[row] / (nu + (top - scores[row]))
        for row in range(n):
            if quotas[row] < 0.0:
                quota = budgets[row] / (nu + (top - scores[row])) * (left / total)
                if quota > caps[row] and rest - caps[row] > k * _ROUNDING:
                    quotas[row] = caps[row]
                    rest -= caps[row]
                    again = True
    for row in range(n):
        if quotas[row] < 0.0:
            quotas[row] = min(budgets[row] / (nu + (top - scores[row])) * (rest / total), caps[row])


def _finite(name: str, values: npt.ArrayLike) -> Floats:
    return _numbers(name, values, -math.inf, "a finite number")


def _positive(name: str, values: npt.ArrayLike) -> Floats:
    return _numbers(name, values, 0.0, "a finite number above 0")


def _numbers(name: str, values: npt.ArrayLike, low: float, expected: str) -> Floats:
    array = np.array(values, np.float64)
    if array.ndim != 1 or not array.size:
        raise InvalidValueError(name, expected="one dimension and at least one element", received=f"shape {array.shape}")
    first = _first_outside(array, low)
    if first >= 0:
        raise InvalidValueError(f"{name}[{first}]", expected=expected, received=float(array[first]))
    return array


def _first_outside(values: Floats, low: float) -> int:
    """Place of the first value that is not finite, or not above `low`; -1 without one."""
    for row in range(values.shape[0]):
        if not low < values[row] < math.inf:
            return row
    return -1


def _checked_k(k: float) -> float:
    if not 0.0 < k < np.inf:
        raise InvalidValueError("k", expected="a number of queries above 0", received=k)
    return float(k)


def _same_length(**arrays: Floats) -> None:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise InvalidValueError(" and ".join(lengths), expected="equal lengths", received=lengths)
