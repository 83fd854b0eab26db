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


def pack_policy_inputs(profile: Profile, evidence: Evidence, rows: Ints | None = None) -> bytes:
    """Inputs of the candidates, and the sums over all clusters of the profile: float64 little-endian, (candidates + 1, 8).

    Float64, for what is logged is what was decided from, to the last bit.

    Args:
        profile: of the user.
        evidence: aligned to it.
        rows: positions of the candidates, ascending; None: all clusters are.
    """
    chosen = np.arange(len(profile)) if rows is None else rows
    matrix = np.zeros((len(chosen) + 1, len(INPUTS)), "<f8")
    _pack(
        matrix,
        chosen,
        profile.topic_ids,
        profile.action_counts,
        profile.importance,
        evidence.impressions_session,
        evidence.reward_session,
        evidence.impressions_long,
        evidence.reward_long,
        evidence.draws_session,
    )
    return matrix.tobytes()


def _pack(  # noqa: PLR0913, PLR0917 -- arrays by themselves: what compiled code takes
    matrix: Floats,
    rows: Ints,
    topic_ids: Ints,
    action_counts: Floats,
    importance: Floats,
    impressions_session: Floats,
    reward_session: Floats,
    impressions_long: Floats,
    reward_long: Floats,
    draws_session: Floats,
) -> None:
    """Write the inputs of the rows, and in the last row of the matrix their sums over all clusters; the matrix comes zeroed."""
    last, types, place = matrix.shape[0] - 1, action_counts.shape[1], 0
    for row in range(action_counts.shape[0]):
        actions = 0.0
        for column in range(types):
            actions += action_counts[row, column]
        matrix[last, 0] += topic_ids[row]
        matrix[last, 1] += actions
        matrix[last, 2] += importance[row]
        matrix[last, 3] += impressions_session[row]
        matrix[last, 4] += reward_session[row]
        matrix[last, 5] += impressions_long[row]
        matrix[last, 6] += reward_long[row]
        matrix[last, 7] += draws_session[row]
        if place < last and rows[place] == row:  # rows ascend
            matrix[place, 0] = topic_ids[row]
            matrix[place, 1] = actions
            matrix[place, 2] = importance[row]
            matrix[place, 3] = impressions_session[row]
            matrix[place, 4] = reward_session[row]
            matrix[place, 5] = impressions_long[row]
            matrix[place, 6] = reward_long[row]
            matrix[place, 7] = draws_session[row]
            place += 1


def evidence_from_inputs(columns: dict[str, Floats]) -> Evidence:
    """The evidence among named inputs, arrays of any one shape; when the last impression was is not among them."""
    shape = columns[INPUTS[3]].shape
    return Evidence(**{name: columns[name] for name in INPUTS[3:]}, last_impression_at=np.zeros(shape, np.int64))
