"""What policies look at beside the features, as it is logged: so that a decision can be repeated, and any policy valued on it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bandit.types import SUM_NAMES, Floats, Ints, Profile, Sums

INPUTS = ("topic_ids", "actions", "importance", *SUM_NAMES)


def pack_policy_inputs(profile: Profile, evidence: Sums, rows: Ints | None = None) -> bytes:
    """Inputs of the candidates, and the sums over all clusters of the profile: float64 little-endian, (candidates + 1, 8).

    Float64, for what is logged is what was decided from, to the last bit.

    Args:
        profile: of the user.
        evidence: aligned to it.
        rows: positions of the candidates, ascending; None: all clusters are.
    """
    chosen = np.arange(len(profile)) if rows is None else rows
    matrix = np.zeros((len(chosen) + 1, len(INPUTS)), "<f8")
    _pack(matrix, chosen, profile, evidence.values)
    return matrix.tobytes()


def _pack(matrix: Floats, rows: Ints, profile: Profile, sums: Floats) -> None:
    """Write the inputs of the rows, and in the last row of the matrix their sums over all clusters; the matrix comes zeroed."""
    topic_ids, actions, importance = profile.topic_ids, profile.actions, profile.importance
    last, position = matrix.shape[0] - 1, 0
    for row in range(topic_ids.shape[0]):
        matrix[last, 0] += topic_ids[row]
        matrix[last, 1] += actions[row]
        matrix[last, 2] += importance[row]
        for column in range(sums.shape[0]):
            matrix[last, 3 + column] += sums[column, row]
        if position < last and rows[position] == row:  # rows ascend
            matrix[position, 0] = topic_ids[row]
            matrix[position, 1] = actions[row]
            matrix[position, 2] = importance[row]
            for column in range(sums.shape[0]):
                matrix[position, 3 + column] = sums[column, row]
            position += 1


def evidence_from_inputs(columns: Mapping[str, Floats], unread: Floats) -> Sums:
    """The evidence among named inputs, arrays of any one shape; `unread` stands for sums that are not among them."""
    return Sums(np.stack([columns.get(name, unread) for name in SUM_NAMES]))
