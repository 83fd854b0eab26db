"""From scores to quotas: how many queries each cluster may expect of one request.

Each function solves one decision, or many whose clusters lie one after the other: those of decision r from offsets[r] to offsets[r + 1].
Serving and evaluation run the same loops, so a policy is valued with the very quotas that serving would draw from. The result is lambda,
float64 (n,), with sum(lambda) = min(k, sum(caps)) and 0 < lambda_i <= caps_i in each decision.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from bandit.errors import InvalidValueError
from bandit.types import Floats, Ints, Rate

_MAX_NEWTON_STEPS = 100
_LEAST_WEIGHT = 1e-200  # of the largest: what keeps divisions by a weight finite
_LEAST_VALUE = 1e-6  # where nothing earns anything: the budget must stay positive for every cluster to keep a chance
_ROUNDING = 1e-12  # a cluster this near its cap is left free: what remains for the others would be rounding only


def proportional(weights: npt.ArrayLike, k: npt.ArrayLike, caps: npt.ArrayLike, offsets: Ints | None = None) -> Floats:
    """Quotas in proportion to the weights, water-filled at the caps: lambda_i = min(caps_i, alpha * weights_i).

    Args:
        weights: (n,), > 0, any unit.
        k: queries of the request, > 0; of many decisions (decisions,).
        caps: (n,), > 0; the most queries that each cluster can give.
        offsets: (decisions + 1,) bounds of the decisions; None: all clusters are of one.

    Raises: InvalidValueError naming the argument and its first bad element.
    """
    w, cap = _positive("weights", weights), _positive("caps", caps)
    _same_length(weights=w, caps=cap)
    bounds, queries = _checked_offsets(offsets, len(w)), _checked_k(k, offsets)
    quotas = np.empty(len(w))
    return _checked(_water_fill(quotas, w, cap, bounds, queries), quotas, cap, bounds, queries)


def budgeted(scores: npt.ArrayLike, budgets: npt.ArrayLike, k: npt.ArrayLike, caps: npt.ArrayLike, offsets: Ints | None = None) -> Floats:
    """Quotas that give up at most sum(budgets) of the greedy value, in the unit of the scores.

    Maximises sum(lambda * scores) + sum(budgets * log(lambda)); so lambda_i = min(caps_i, budgets_i / (nu - scores_i)) with one nu
    for all clusters of a decision, found by Newton's method on 1 / sum, which is concave and nearly straight.

    Args:
        scores: (n,), predicted reward per query or per impression, any sign.
        budgets: (n,), > 0; the exploration that each cluster may cost.
        k: queries of the request, > 0; of many decisions (decisions,).
        caps: (n,), > 0; the most queries that each cluster can give.
        offsets: (decisions + 1,) bounds of the decisions; None: all clusters are of one.

    Raises: InvalidValueError naming the argument and its first bad element.

    Source: inverse-gap weighting, Foster and Rakhlin 2020; its log-barrier form, Foster, Gentile, Mohri and Zimmert 2020.
    """
    s, b, cap = _finite("scores", scores), _positive("budgets", budgets), _positive("caps", caps)
    _same_length(scores=s, budgets=b, caps=cap)
    bounds, queries = _checked_offsets(offsets, len(s)), _checked_k(k, offsets)
    quotas = np.empty(len(s))
    return _checked(_solve_budgeted(quotas, s, b, cap, bounds, queries), quotas, cap, bounds, queries)


def budget_by_evidence(
    scores: Floats,
    impressions: Floats,
    k: npt.ArrayLike,
    caps: Floats,
    *,
    prior: Rate,
    share: float,
    offsets: Ints | None = None,
) -> Floats:
    """`budgeted` quotas that give up at most `share` of the greedy value of the scores, spent where evidence is thin.

    Args:
        scores: (n,).
        impressions: behind each score, (n,), >= 0; a cluster's part of the budget is proportional to 1 / (impressions + strength).
        k: as in `budgeted`.
        caps: (n,), > 0.
        prior: of all clusters. The greedy value counts as k times its mean, at least.
        share: within (0, 1].
        offsets: as in `budgeted`.

    Raises: InvalidValueError as `budgeted`.
    """
    n = len(scores)
    if not n == len(impressions) == len(caps):
        _same_length(scores=scores, impressions=impressions, caps=caps)
    bounds, queries = _checked_offsets(offsets, n), _checked_k(k, offsets)
    quotas, budgets = np.empty(n), np.zeros(n)
    if not _fill_budgets(budgets, scores, impressions, caps, bounds, queries, (prior.mean, prior.strength, share)):
        return budgeted(scores, budgets, k, caps, offsets)  # which names what is wrong
    return _checked(_solve_budgeted(quotas, scores, budgets, caps, bounds, queries), quotas, caps, bounds, queries)


def query_caps(offsets: Ints, most: float) -> Floats:
    """What each cluster can give at most, (n,): one query for each of its items, which lie from offsets[i] to offsets[i + 1]."""
    caps = np.empty(len(offsets) - 1)
    _fill_caps(caps, offsets, most)
    return caps


def _fill_caps(caps: Floats, offsets: Ints, most: float) -> None:
    for row in range(caps.shape[0]):
        items = float(offsets[row + 1] - offsets[row])
        caps[row] = min(items, most)


def _fill_budgets(
    budgets: Floats, scores: Floats, impressions: Floats, caps: Floats, offsets: Ints, k: Floats, terms: tuple[float, float, float]
) -> bool:
    """Fill the budgets, which come zeroed: parts of each decision's budget, in proportion to 1 / (impressions + strength).

    Args:
        budgets: (n,), written.
        scores: (n,).
        impressions: (n,).
        caps: (n,).
        offsets: (decisions + 1,).
        k: (decisions,).
        terms: mean and strength of the prior, and the share of the greedy value that is the budget.

    Returns: whether quotas can be made of this.
    """
    mean, strength, share = terms
    sound = True
    for decision in range(k.shape[0]):
        start, end, total = offsets[decision], offsets[decision + 1], 0.0
        value = max(_greedy(budgets, scores, caps, start, end, k[decision]), k[decision] * mean, _LEAST_VALUE)
        for row in range(start, end):
            budgets[row] = 1.0 / (impressions[row] + strength)
            total += budgets[row]
        for row in range(start, end):
            budgets[row] *= share * value / total
            sound = sound and -math.inf < scores[row] < math.inf and 0.0 < budgets[row] < math.inf and 0.0 < caps[row] < math.inf
    return sound


def _greedy(passed: Floats, scores: Floats, caps: Floats, start: int, end: int, k: float) -> float:
    """Largest sum(lambda * scores) over 0 <= lambda <= caps, sum(lambda) = min(k, sum(caps)): what exploration is measured against.

    The best cluster that is left, again and again; `passed` comes zeroed. Some k rounds: fewer than sorting would take.
    """
    value, rest = 0.0, k
    for _ in range(start, end):
        best = -1
        for row in range(start, end):
            if passed[row] == 0.0 and (best < 0 or scores[row] > scores[best]):
                best = row
        passed[best] = 1.0
        taken = min(caps[best], rest)
        value += taken * scores[best]
        rest -= taken
        if not rest > 0.0:
            break
    return value


def _mark_uncapped(quotas: Floats, caps: Floats, start: int, end: int, k: float) -> bool:
    """Whether k is below the sum of the caps. If so all quotas are -1, for: not at its cap yet; else they are the caps."""
    most = 0.0
    for row in range(start, end):
        most += caps[row]
    for row in range(start, end):
        quotas[row] = -1.0 if k < most else caps[row]
    return k < most


def _is_distribution(quotas: Floats, caps: Floats, start: int, end: int, k: float) -> bool:
    """Whether the quotas are positive, and sum to min(k, sum(caps))."""
    total, most, positive = 0.0, 0.0, True
    for row in range(start, end):
        positive = positive and quotas[row] > 0.0
        total += quotas[row]
        most += caps[row]
    expected = min(k, most)
    return positive and abs(total - expected) <= 1e-9 * max(expected, 1.0)


def _water_fill(quotas: Floats, weights: Floats, caps: Floats, offsets: Ints, k: Floats) -> int:
    """Fill the quotas of `proportional`; each weight becomes its ratio to the largest of its decision.

    A cluster that would get more than its cap gets the cap, and what is left is shared again: the others can only get more then.

    Returns: the first decision whose quotas are no distribution, -1 without one.
    """
    for decision in range(k.shape[0]):
        start, end, rest, top, total = offsets[decision], offsets[decision + 1], k[decision], 0.0, 0.0
        for row in range(start, end):
            top = max(top, weights[row])
        for row in range(start, end):
            weights[row] = max(weights[row] / top, _LEAST_WEIGHT)
        again = _mark_uncapped(quotas, caps, start, end, rest)
        while again:
            again, total, left = False, 0.0, rest
            for row in range(start, end):
                if quotas[row] < 0.0:
                    total += weights[row]
            for row in range(start, end):
                if quotas[row] < 0.0 and left * (weights[row] / total) > caps[row] and rest - caps[row] > k[decision] * _ROUNDING:
                    quotas[row] = caps[row]
                    rest -= caps[row]
                    again = True
        for row in range(start, end):
            if quotas[row] < 0.0:
                quotas[row] = min(rest * (weights[row] / total), caps[row])
        if not _is_distribution(quotas, caps, start, end, k[decision]):
            return decision
    return -1


def _solve_budgeted(quotas: Floats, scores: Floats, budgets: Floats, caps: Floats, offsets: Ints, k: Floats) -> int:
    """Fill the quotas of `budgeted`; capped in rounds like `_water_fill`, and with its result."""
    for decision in range(k.shape[0]):
        start, end, rest = offsets[decision], offsets[decision + 1], k[decision]
        again, nu, top, total = _mark_uncapped(quotas, caps, start, end, rest), 0.0, 0.0, 0.0
        while again:
            again, left, top, total = False, rest, -math.inf, 0.0
            for row in range(start, end):
                if quotas[row] < 0.0:
                    top = max(top, scores[row])
            nu = _root(quotas, scores, budgets, start, end, top, left)
            for row in range(start, end):
                if quotas[row] < 0.0:
                    total += budgets[row] / (nu + (top - scores[row]))
            for row in range(start, end):
                if quotas[row] < 0.0:
                    quota = budgets[row] / (nu + (top - scores[row])) * (left / total)
                    if quota > caps[row] and rest - caps[row] > k[decision] * _ROUNDING:
                        quotas[row] = caps[row]
                        rest -= caps[row]
                        again = True
        for row in range(start, end):
            if quotas[row] < 0.0:
                quotas[row] = min(budgets[row] / (nu + (top - scores[row])) * (rest / total), caps[row])
        if not _is_distribution(quotas, caps, start, end, k[decision]):
            return decision
    return -1


def _root(quotas: Floats, scores: Floats, budgets: Floats, start: int, end: int, top: float, left: float) -> float:
    """The nu with which the uncapped clusters get `left` queries; it counts from their best score, `top`."""
    nu = 0.0
    for row in range(start, end):  # starts below the root, where the sum is too large
        if quotas[row] < 0.0:
            nu = max(nu, budgets[row] / left - (top - scores[row]))
    for _ in range(_MAX_NEWTON_STEPS):
        total, slope = 0.0, 0.0
        for row in range(start, end):
            if quotas[row] < 0.0:
                inverse = 1.0 / (nu + (top - scores[row]))
                total += budgets[row] * inverse
                slope += budgets[row] * inverse * inverse
        step = total * (total / left - 1.0) / slope
        nu += step
        if step <= 1e-15 * nu:
            break
    return nu


def _checked(unsound: int, quotas: Floats, caps: Floats, offsets: Ints, k: Floats) -> Floats:
    """The quotas. Raises: InvalidValueError when those of a decision, `unsound`, are no distribution of its k queries."""
    if unsound >= 0:
        clusters = slice(offsets[unsound], offsets[unsound + 1])
        name = f"quotas of decision {unsound}" if len(k) > 1 else "quotas"
        expected = f"positive numbers that sum to {min(float(k[unsound]), float(caps[clusters].sum()))}"
        raise InvalidValueError(name, expected=expected, received=quotas[clusters].tolist())
    return quotas


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


def _checked_k(k: npt.ArrayLike, offsets: Ints | None) -> Floats:
    decisions = 1 if offsets is None else len(offsets) - 1
    queries = np.array(k, np.float64, ndmin=1)
    if queries.shape != (decisions,) or _first_outside(queries, 0.0) >= 0:
        raise InvalidValueError("k", expected=f"a number of queries above 0 for each of {decisions} decisions", received=k)
    return queries


def _checked_offsets(offsets: Ints | None, n: int) -> Ints:
    if offsets is None:
        return np.array((0, n), np.int64)
    if offsets[0] != 0 or offsets[len(offsets) - 1] != n or (np.diff(offsets) < 0).any():
        raise InvalidValueError("offsets", expected=f"ascending numbers from 0 to {n}", received=offsets.tolist())
    return offsets


def _same_length(**arrays: Floats) -> None:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise InvalidValueError(" and ".join(lengths), expected="equal lengths", received=lengths)
