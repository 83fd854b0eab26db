"""What `select` returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bandit.records import Query


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
