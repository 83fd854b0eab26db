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


def pack_inputs(profile: Profile, evidence: Evidence, rows: Ints | None = None) -> bytes:
    """Inputs of the candidates, and the sums over all clusters of the profile: float64 little-endian, (candidates + 1, 8).

    Float64, for what is logged is what was decided from, to the last bit.

    Args:
        profile: of the user.
        evidence: aligned to it.
        rows: positions of the candidates; None: all clusters are.
    """
    columns = np.array(
        (
            profile.topic_ids,
            profile.actions,
            profile.importance,
            evidence.impressions_session,
            evidence.reward_session,
            evidence.impressions_long,
            evidence.reward_long,
            evidence.draws_session,
        )
    )
    candidates = columns if rows is None else columns[:, rows]
    return np.column_stack((candidates, columns.sum(axis=1))).T.astype("<f8").tobytes()


def evidence_of(columns: dict[str, Floats]) -> Evidence:
    """The evidence among named inputs, arrays of any one shape; when the last impression was is not among them."""
    shape = columns[INPUTS[3]].shape
    return Evidence(**{name: columns[name] for name in INPUTS[3:]}, last_impression_at=np.zeros(shape, np.int64))
