"""What `select` returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from bandit.records import Decision, Query


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The queries of one request.

    decision_id: to be echoed by the feedback; empty when nothing was decided.
    degraded: the features or the log could not be reached; `reason` says what happened, also for an empty or short selection.
    logged: the decision is in the log, so that its feedback can be attributed.
    quotas: expected queries of each candidate cluster, what was drawn from.
    """

    decision_id: str
    queries: Sequence[Query]
    policy: str
    model_version: str
    degraded: bool = False
    logged: bool = True
    reason: str = ""
    quotas: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, decision: Decision, *, wanted: int, reason: str, logged: bool) -> Self:
        """A decision about `wanted` queries; `reason` says what went wrong, if anything did."""
        if not reason and len(decision.queries) < wanted:
            reason = f"{len(decision.queries)} of {wanted} queries: the clusters have no more"
        return cls(
            decision_id=decision.decision_id,
            queries=decision.queries,
            policy=decision.policy,
            model_version=decision.model_version,
            degraded=decision.degraded or not logged,
            logged=logged,
            reason=reason,
            quotas=dict(zip(decision.cluster_ids, decision.quotas, strict=True)),
        )
