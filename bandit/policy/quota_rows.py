"""`bandit.policy.quotas` for many decisions at once: (R, n) matrices in which a cap of 0 marks a place without a candidate.

The same problems, solved by iterations over all rows that are not settled yet; `tests/bandit/test_plan_rows.py` holds them to the
scalar solvers.
"""

from __future__ import annotations

import numpy as np

from bandit.policy.quotas import budgeted
from bandit.types import Floats

_STEPS = 200
_ENOUGH = 1e-12  # of k: how far the quotas' sum may be off before they are scaled to it
_LEAST_WEIGHT = 1e-200


def proportional_rows(weights: Floats, k: Floats, caps: Floats) -> Floats:
    """min(cap, alpha * weight) with sum min(k, sum(caps)) in each row.

    Args:
        weights: (R, n), > 0 wherever the cap is.
        k: (R,) queries, > 0.
        caps: (R, n), >= 0.
    """
    there = caps > 0.0
    top = np.max(weights, axis=1, where=there, initial=np.finfo(np.float64).tiny)
    w = np.where(there, np.maximum(weights / top[:, None], _LEAST_WEIGHT), 0.0)
    quotas = caps.copy()
    rows = np.flatnonzero(k < caps.sum(axis=1))
    free = there[rows]
    while len(rows):
        cap, weight = caps[rows], w[rows]
        left = k[rows] - np.where(free, 0.0, cap).sum(axis=1)
        shares = weight * (left / np.where(free, weight, 0.0).sum(axis=1))[:, None]
        over = free & (shares > cap)
        quotas[rows] = np.where(free, np.minimum(shares, cap), cap)
        again = over.any(axis=1)
        rows, free = rows[again], (free & ~over)[again]
    return quotas


def budgeted_rows(scores: Floats, budgets: Floats, k: Floats, caps: Floats) -> Floats:
    """min(cap, budget / (nu - score)) with sum min(k, sum(caps)) in each row.

    Args:
        scores: (R, n), any sign.
        budgets: (R, n), > 0 wherever the cap is.
        k: (R,) queries, > 0.
        caps: (R, n), >= 0.

    Newton's method on 1 / sum as in the scalar solver, within a bracket that halves when a step would leave it.
    """
    there = caps > 0.0
    quotas = caps.copy()
    rows = np.flatnonzero(k < caps.sum(axis=1))
    if not len(rows):
        return quotas
    there, cap, b, wanted = there[rows], caps[rows], np.where(there, budgets, 0.0)[rows], k[rows]
    top = np.max(scores[rows], axis=1, where=there, initial=-np.inf)
    gap = np.where(there, top[:, None] - scores[rows], 0.0)
    threshold = np.divide(b, cap, out=np.zeros_like(b), where=there) - gap  # a cluster sits at its cap while nu is not above it
    low = np.min(threshold, axis=1, where=there, initial=np.inf)  # where all do
    high = np.maximum(b.sum(axis=1) / wanted, low)
    nu = np.clip(np.max(b / wanted[:, None] - gap, axis=1, where=there, initial=-np.inf), low, high)
    for step in range(_STEPS):
        distance = nu[:, None] + gap
        capped = distance * cap <= b
        free = np.where(capped, 0.0, b / np.where(capped, 1.0, distance))
        rest = wanted - np.where(capped, cap, 0.0).sum(axis=1)
        total = free.sum(axis=1)
        error = total - rest
        precise = np.abs(error) <= _ENOUGH * wanted
        settled = precise | (high - low <= 1e-15 * np.abs(high)) | (step == _STEPS - 1)
        if settled.any():
            scale = np.divide(np.maximum(rest, 0.0), total, out=np.ones_like(total), where=total > 0.0)
            found = np.where(capped, cap, np.minimum(free * scale[:, None], cap))
            quotas[rows[settled]] = found[settled]
            for row in rows[settled & ~precise]:  # budgets so far below the rounding of the scores that nu cannot be told: seldom
                place = caps[row] > 0.0
                quotas[row, place] = budgeted(scores[row, place], budgets[row, place], k[row], caps[row, place])
        if settled.all():
            break
        low, high = np.where(error > 0.0, nu, low), np.where(error > 0.0, high, nu)
        slope = np.divide(free * free, b, out=np.zeros_like(b), where=b > 0.0).sum(axis=1)
        newton = nu + total * (total / np.where(rest > 0.0, rest, np.inf) - 1.0) / np.where(slope > 0.0, slope, np.inf)
        nu = np.where((rest > 0.0) & (newton > low) & (newton < high), newton, (low + high) / 2.0)
        if settled.any():
            kept = ~settled
            rows, gap, cap, b, wanted, low, high, nu = (array[kept] for array in (rows, gap, cap, b, wanted, low, high, nu))
    return quotas


def greedy_rows(scores: Floats, k: Floats, caps: Floats) -> Floats:
    """Largest sum(lambda * scores) of each row, (R,), as `bandit.policy.quotas.greedy_value`."""
    worth = np.where(caps > 0.0, scores, -np.inf)
    best = worth.argmax(axis=1)
    index = np.arange(len(best))
    value = k * worth[index, best]
    rest = np.flatnonzero(caps[index, best] < k)
    if len(rest):
        order = np.argsort(-worth[rest], axis=1)
        cap = np.take_along_axis(caps[rest], order, axis=1)
        taken = np.minimum(cap, np.maximum(k[rest, None] - (np.cumsum(cap, axis=1) - cap), 0.0))
        value[rest] = (taken * np.where(cap > 0.0, np.take_along_axis(scores[rest], order, axis=1), 0.0)).sum(axis=1)
    return np.asarray(value, np.float64)
