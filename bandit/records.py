"""Records that cross a process: what serving logs, and what the feed reports back. MessagePack on the wire."""

from __future__ import annotations

import os

import msgspec
import numpy as np

from bandit.types import Floats, Floats32


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """One item to send to retrieval. `propensity` is its exact probability of being in this selection, within (0, 1]."""

    item_id: str
    cluster_id: str
    propensity: float


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One request's choice, with everything that is needed to repeat, explain and value it.

    `features` holds the candidates' feature matrix as served, float32 little-endian, row by row, (n, d) with n = len(cluster_ids);
    `scores` and `quotas` are float64 (n,), `caps` the most queries that each cluster could give. Times are UTC microseconds.
    `inputs` holds what policies look at beside the features (`bandit.policy.logged_inputs`), float64 little-endian,
    (n + 1, 8), the last row the sums
    over all clusters of the user; empty in records of before. `arm` is the user's arm of an experiment, `mode` how the choice came about.
    """

    decision_id: str
    user_id: str
    decided_at: int
    policy: str
    model_version: str
    k: int
    seed: int
    feature_version: int
    cluster_ids: list[str]
    features: bytes
    scores: list[float]
    quotas: list[float]
    caps: list[float]
    queries: list[Query]
    context: dict[str, str]
    degraded: bool
    inputs: bytes = b""
    arm: str = ""
    mode: str = "online"

    def feature_matrix(self) -> Floats32:
        """The logged features, float32 (n, d)."""
        return np.frombuffer(self.features, "<f4").reshape(len(self.cluster_ids), -1)

    def input_matrix(self) -> Floats:
        """The logged inputs, float64 (n + 1, 8); (0, 8) for a record of before."""
        return np.frombuffer(self.inputs, "<f8").reshape(-1, 8)


class Feedback(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One thing that happened downstream of a query: it echoes what the query carried. `occurred_at` in UTC microseconds."""

    event_id: str
    decision_id: str
    user_id: str
    cluster_id: str
    query_id: str
    item_id: str
    action: str
    occurred_at: int


def uuid7(at: int, entropy: bytes | None = None) -> str:
    """Identifier that sorts by time (RFC 9562, version 7): `at` in UTC microseconds, then 10 bytes of entropy (the system's if None)."""
    random = int.from_bytes(entropy if entropy is not None else os.urandom(10), "big") & ((1 << 74) - 1)
    value = ((at // 1000) & ((1 << 48) - 1)) << 80 | 7 << 76 | (random >> 62) << 64 | 2 << 62 | (random & ((1 << 62) - 1))
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
