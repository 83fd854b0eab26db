"""A/B experiments: which arm a user is in, and whether the arms came out as large as they should."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from bandit.diagnostics import chi_squared_tail


def arm_of(user_id: str, salt: str, shares: Mapping[str, float]) -> str:
    """The user's arm, the same for ever under one salt; empty for users outside of the experiment.

    Args:
        user_id: of the user.
        salt: another salt is another, independent split.
        shares: of each arm, within (0, 1], in the order of the settings; what they leave of 1 is outside.
    """
    digest = hashlib.blake2b(f"{salt}\0{user_id}".encode(), digest_size=8).digest()
    place, reached = int.from_bytes(digest, "big") / 2.0**64, 0.0
    for arm, share in shares.items():
        reached += share
        if place < reached:
            return arm
    return ""


def sample_ratio_p(counts: Sequence[int], shares: Sequence[float]) -> float:
    """Chance of a split at least as uneven as `counts` when users fall into arms by `shares`: below 1e-3, look for the bug first.

    Source: Fabijan et al., Diagnosing sample ratio mismatch in online controlled experiments, 2019; Pearson's chi-squared.
    """
    total, whole = sum(counts), sum(shares)
    if not total or len(counts) < 2:
        return 1.0
    expected = [total * share / whole for share in shares]
    return chi_squared_tail(sum((n - e) ** 2 / e for n, e in zip(counts, expected, strict=True)), len(counts) - 1)
