"""Which partition of Redis a user lives in."""

from __future__ import annotations

import zlib

from feature_repo import names


def partition(user_id: str) -> int:
    """Partition of a user, 0 to 255, the same in every process and for ever: crc32 of the id's UTF-8, modulo 256."""
    return zlib.crc32(user_id.encode()) % names.PARTITIONS
