"""Choosing where to cut weights off: the least of variance plus squared bias, the bias by its bound."""

from __future__ import annotations

import numpy as np

from bandit.ope.estimators.batch import Batch
from bandit.ope.estimators.state import State
from bandit.types import Floats

THRESHOLDS = 2.0 ** np.arange(13)  # of a weight: 1 to 4096
COUNT = len(THRESHOLDS)


def sums_of(batch: Batch, cut: Floats) -> Floats:
    """Sums within each decision of values that differ by threshold, (D, COUNT) to (R, COUNT)."""
    result = np.zeros((len(batch), cut.shape[1]))
    if len(batch.row):
        starts = np.flatnonzero(np.append(True, batch.row[1:] != batch.row[:-1]))
        result[batch.row[starts]] = np.add.reduceat(cut, starts, axis=0)
    return result


def least_bound(state: State) -> int:
    """Which threshold minimises variance of the mean + bias bound squared.

    The state's first COUNT terms are the values, the next COUNT the weighted draws that the threshold took away: those draws times the
    largest reward of one draw bound what the target may have lost. Source: Wang, Agarwal and Dudik 2017, section 3.1.
    """
    if state.count < 2:
        return COUNT - 1
    mean = state.totals[:COUNT] / state.count
    variance = np.maximum(np.diag(state.products)[:COUNT] / state.count - mean**2, 0.0)
    bias = state.reward_limit * state.totals[COUNT:] / state.count
    return int(np.argmin(variance / state.count + bias**2))
