"""From scores to quotas: how many queries each cluster may expect of one request.

Both functions return lambda, float64 (n,), with sum(lambda) = min(k, sum(caps)) and 0 < lambda_i <= caps_i.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bandit.errors import InvalidValueError
from bandit.types import Floats

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
    w, cap, k = _positive("weights", weights), _positive("caps", caps), _queries(k)
    _same_length(weights=w, caps=cap)
    if k >= cap.sum():
        return cap
    w = np.maximum(w / w.max(), _LEAST_WEIGHT)
    order = np.argsort(cap / w)  # those that reach their cap first, first
    capped = np.concatenate(([0.0], np.cumsum(cap[order])[:-1]))
    rest = np.cumsum(w[order][::-1])[::-1]
    alphas = (k - capped) / rest  # alpha if exactly the first j clusters are capped
    j = int(np.argmax(alphas * w[order] <= cap[order]))
    quotas: Floats = np.minimum(cap, alphas[j] * w)
    quotas[order[:j]] = cap[order[:j]]
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
    s, b, cap, k = _finite("scores", scores), _positive("budgets", budgets), _positive("caps", caps), _queries(k)
    _same_length(scores=s, budgets=b, caps=cap)
    return spend(s, b, cap, k)


def spend(s: Floats, b: Floats, cap: Floats, k: float) -> Floats:
    """`budgeted` on scores, budgets and caps that are known to be sound."""
    if k >= cap.sum():
        return cap
    # Cluster i sits at its cap while nu <= s_i + b_i / cap_i. Rooms are kept relative to the cluster that is tried, so that budgets far
    # below the rounding of the scores still divide exactly.
    room = b / cap
    order = np.lexsort((-room, (s.max() - s) - room))
    # Number of capped clusters: the largest j whose j-th threshold clearly leaves room for the others; the caps alone bound it.
    most = min(int(np.searchsorted(cap[order].cumsum(), k)) + 1, len(s) - 1)
    tried = order[:most]
    leaves_room = _filled(room[tried], s[tried], s, b, cap) < k * (1.0 - _ROUNDING)
    low = most - int(leaves_room[::-1].argmax()) if leaves_room.any() else 0
    free = order[low:]
    quotas = cap.copy()
    quotas[free] = np.minimum(cap[free], _inverse_gaps(s[free], b[free], cap[free], k - cap[order[:low]].sum()))
    return quotas


def greedy_value(scores: Floats, k: float, caps: Floats) -> float:
    """Largest sum(lambda * scores) over 0 <= lambda <= caps, sum(lambda) = min(k, sum(caps)): what exploration is measured against."""
    _same_length(scores=scores, caps=caps)
    order = np.argsort(-scores)
    taken = np.minimum(caps[order], np.maximum(k - (np.cumsum(caps[order]) - caps[order]), 0.0))
    return float(taken @ scores[order])


def _filled(rooms: Floats, tried: Floats, scores: Floats, budgets: Floats, caps: Floats) -> Floats:
    """Sum of the quotas when nu is at the threshold of each cluster that is tried, (j,)."""
    room = rooms[:, None] + (tried[:, None] - scores)
    at_cap = room * caps <= budgets
    room[at_cap] = 1.0
    return np.asarray(np.where(at_cap, caps, budgets / room).sum(axis=1), np.float64)


def _inverse_gaps(scores: Floats, budgets: Floats, caps: Floats, k: float) -> Floats:
    gaps = scores.max() - scores
    nu = max(float((budgets / caps - gaps).max()), float((budgets[gaps == 0.0]).max()) / k)  # left of the root: the sum is >= k
    for _ in range(_MAX_NEWTON_STEPS):
        inverse = 1.0 / (nu + gaps)
        total = float(budgets @ inverse)
        step = total * (total / k - 1.0) / float(budgets @ (inverse * inverse))
        nu += step
        if step <= 1e-15 * nu:
            break
    quotas = budgets / (nu + gaps)
    return np.asarray(quotas * (k / quotas.sum()), np.float64)


def _finite(name: str, values: npt.ArrayLike) -> Floats:
    array = np.array(values, np.float64)
    if array.ndim != 1 or not array.size:
        raise InvalidValueError(name, expected="one dimension and at least one element", received=f"shape {array.shape}")
    if not np.isfinite(array).all():
        first = int(np.argmin(np.isfinite(array)))
        raise InvalidValueError(f"{name}[{first}]", expected="a finite number", received=float(array[first]))
    return array


def _positive(name: str, values: npt.ArrayLike) -> Floats:
    array = _finite(name, values)
    if not (array > 0.0).all():
        first = int(np.argmin(array > 0.0))
        raise InvalidValueError(f"{name}[{first}]", expected="a number above 0", received=float(array[first]))
    return array


def _queries(k: float) -> float:
    if not 0.0 < k < np.inf:
        raise InvalidValueError("k", expected="a number of queries above 0", received=k)
    return float(k)


def _same_length(**arrays: Floats) -> None:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise InvalidValueError(" and ".join(lengths), expected="equal lengths", received=lengths)
