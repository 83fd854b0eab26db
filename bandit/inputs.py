"""What policies look at beside the features, as it is logged: so that a decision can be repeated, and any policy valued on it."""

from __future__ import annotations

import numpy as np

from bandit.types import Evidence, Floats, Ints, Profile

INPUTS = (
    "topic_ids",
    "actions",
    "importance",
    "impressions_session",
    "reward_session",
    "impressions_long",
    "reward_long",
    "draws_session",
)


def pack_inputs(profile: Profile, evidence: Evidence, rows: Ints) -> bytes:
    """Inputs of the candidates, and the sums over all clusters of the profile: float64 little-endian, (len(rows) + 1, 8).

    Float64, for what is logged is what was decided from, to the last bit.

    Args:
        profile: of the user.
        evidence: aligned to it.
        rows: positions of the candidates.
    """
    columns = [profile.topic_ids, profile.action_counts.sum(axis=1), profile.importance, *(getattr(evidence, name) for name in INPUTS[3:])]
    matrix = np.empty((len(rows) + 1, len(INPUTS)), "<f8")
    for place, column in enumerate(columns):
        matrix[:-1, place] = column[rows]
        matrix[-1, place] = column.sum()
    return matrix.tobytes()


def evidence_of(columns: dict[str, Floats]) -> Evidence:
    """The evidence among named inputs, arrays of any one shape; when the last impression was is not among them."""
    shape = columns[INPUTS[3]].shape
    return Evidence(**{name: columns[name] for name in INPUTS[3:]}, last_impression_at=np.zeros(shape, np.int64))
