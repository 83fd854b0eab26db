"""Groups that follow each other in one flat array, given by how many members each has."""

from __future__ import annotations

import numpy as np

from bandit.types import Ints


def starts_of(sizes: Ints) -> Ints:
    """Where each group begins, shape (groups,)."""
    return np.cumsum(sizes) - sizes


def offsets_of(sizes: Ints) -> Ints:
    """Where each group begins, and where the last one ends, shape (groups + 1,)."""
    return np.append(0, np.cumsum(sizes))


def places_in(sizes: Ints) -> Ints:
    """Place of each member in its group, from 0, shape (members,)."""
    return np.arange(sizes.sum()) - np.repeat(starts_of(sizes), sizes)
