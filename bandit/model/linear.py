"""Predictions of a linear model with products of its features."""

from __future__ import annotations

import numpy as np

from bandit.types import Floats, Floats32


def predictions(features: Floats32, weights: Floats32) -> Floats:
    """Constant, plus weighted features, plus weighted products of two of them: float64 (n,).

    Args:
        features: float32 (n, d).
        weights: float32: d of the features, one of the constant, and d(d+1)/2 of the products (i <= j, row by row).
    """
    result = np.empty(len(features))
    _predict(result, features, weights)
    return result


def _predict(result: Floats, features: Floats32, weights: Floats32) -> None:
    width = features.shape[1]
    for row in range(features.shape[0]):
        total, place = float(weights[width]), width + 1
        for first in range(width):
            value, factor = float(features[row, first]), float(weights[first])
            for second in range(first, width):
                factor += float(weights[place]) * float(features[row, second])
                place += 1
            total += value * factor
        result[row] = total
