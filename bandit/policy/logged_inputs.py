"""What policies look at beside the features, as it is logged: so that a decision can be repeated, and any policy valued on it."""

from __future__ import annotations

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
    topic_ids, action_counts, importance = profile.topic_ids, profile.action_counts, profile.importance
    last, types, position = matrix.shape[0] - 1, action_counts.shape[1], 0
    for row in range(action_counts.shape[0]):
        actions = 0.0
        for column in range(types):
            actions += action_counts[row, column]
        matrix[last, 0] += topic_ids[row]
        matrix[last, 1] += actions
        matrix[last, 2] += importance[row]
        for column in range(sums.shape[0]):
            matrix[last, 3 + column] += sums[column, row]
        if position < last and rows[position] == row:  # rows ascend
            matrix[position, 0] = topic_ids[row]
            matrix[position, 1] = actions
            matrix[position, 2] = importance[row]
            for column in range(sums.shape[0]):
                matrix[position, 3 + column] = sums[column, row]
            position += 1


def evidence_from_inputs(columns: dict[str, Floats]) -> Sums:
    """The evidence among named inputs, arrays of any one shape."""
    return Sums(np.stack([columns[name] for name in SUM_NAMES]))
