"""A/B experiments: which arm a user is in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping


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
