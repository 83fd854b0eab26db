"""Every key of Redis. Each begins with the deployment's project, so that two deployments on one Redis never see each other."""

from __future__ import annotations

import os
import re
import zlib
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import yaml

from bandit.errors import FeatureStoreError

PARTITIONS = 256  # a stream is one key, so both logs are spread by user; fixed for ever
_PROJECT = re.compile(r"[A-Za-z0-9_]+")  # as Feast wants it; nothing that a pattern of Redis reads in another way
_PARTITION_KEY = re.compile(r"\{\w+:(\d+)\}:(\w+)(?::(.*))?", re.DOTALL)


def partition(user_id: str) -> int:
    """Partition of a user, 0 to 255, the same in every process and for ever: crc32 of the id's UTF-8, modulo 256."""
    return zlib.crc32(user_id.encode()) % PARTITIONS


class PartitionKeys:
    """Keys of one partition. The braces put all of them into one hash slot, so that one Lua step may change them together."""

    def __init__(self, project: str, number: int | str) -> None:
        """`number` "*" makes patterns."""
        self._start = start = f"{{{project}:{number}}}"
        self.decisions = f"{start}:decisions"  # stream
        self.feedback = f"{start}:feedback"  # stream
        self.fence = f"{start}:fence"  # number of the newest owner of the partition; never goes back
        self.lease = f"{start}:lease"  # who owns the partition, until it expires
        self.state = f"{start}:state"  # hash: number of commits, position in both streams, what the sums were made with
        self.dirty = f"{start}:dirty"  # users of the last commit: their rows in the online store may be behind their sums
        self.dead_letters = f"{start}:dead_letters"

    def seen(self, bucket: int | str) -> str:
        """Set of event ids, by time of arrival."""
        return f"{self._start}:seen:{bucket}"

    def sums(self, user_id: str) -> str:
        """Decayed sums of a user."""
        return f"{self._start}:sums:{user_id}"


class Keys:
    """Keys of one deployment."""

    def __init__(self, project: str) -> None:
        """Raises: FeatureStoreError for a project that cannot begin a key."""
        if not _PROJECT.fullmatch(project):
            raise FeatureStoreError(f"project {project!r}: expected letters, digits and underscores")
        self._partitions = [PartitionKeys(project, number) for number in range(PARTITIONS)]
        self.every_partition = PartitionKeys(project, "*")  # patterns for SCAN
        self._start = f"{{{project}}}"  # one slot as well: a promotion changes several of these in one step
        self.deployment = f"{self._start}:deployment"  # which data folder writes here (training/claim.py)
        self.workers = f"{self._start}:stream:workers"
        self.champion = f"{self._start}:model:champion"

    @classmethod
    def of(cls, folder: Path) -> Keys:
        """Keys of the deployment whose feature_store.yaml is in `folder`. Raises: FeatureStoreError."""
        file = folder / "feature_store.yaml"
        if not file.exists():
            raise FeatureStoreError(f"{file}: no such file; `query-rewards init` writes one")
        return cls(str(yaml.safe_load(os.path.expandvars(file.read_text(encoding="utf-8")))["project"]))

    def partition(self, number: int) -> PartitionKeys:
        """Keys of a partition."""
        return self._partitions[number]

    def of_user(self, user_id: str) -> PartitionKeys:
        """Keys of the partition that a user lives in."""
        return self._partitions[partition(user_id)]

    def model(self, digest: str) -> str:
        """A model's bytes, by their sha256."""
        return f"{self._start}:model:{digest}"


class ParsedKey(NamedTuple):
    """A key of a partition, read back: its number, what it holds (`decisions`, `sums`, …), and the user or bucket, empty for none."""

    number: int
    kind: str
    of: str


@lru_cache(4 * PARTITIONS)
def parse(key: str) -> ParsedKey:
    """Read a key of a partition back."""
    match = _PARTITION_KEY.fullmatch(key)
    if match is None:
        raise ValueError(f"{key!r} is no key of a partition")
    return ParsedKey(int(match[1]), match[2], match[3] or "")
