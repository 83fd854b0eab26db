"""Adopting Query Rewards on live traffic: your own choice is served and logged with its propensities, before ours ever is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from bandit.errors import InvalidValueError
from bandit.records import Decision, Query
from serving.selection import Selection

EXISTING = "existing"  # policy of a decision that the caller made
ONLINE = "online"
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Existing:
    """A choice that the caller made.

    queries: what it serves, each with its probability of being served. quotas: how many queries it expects of each cluster, drawn or
    not; without them no other policy can be valued on it. A cluster that is not named has none.
    """

    queries: Sequence[Query]
    quotas: Mapping[str, float]

    def __post_init__(self) -> None:
        """Refuse a choice that its quotas cannot have made."""
        for cluster_id, quota in self.quotas.items():
            if not 0.0 < quota < float("inf"):
                raise InvalidValueError(f"quota of cluster {cluster_id!r}", expected="a number above 0", received=quota)
        for query in self.queries:
            if query.cluster_id not in self.quotas:
                raise InvalidValueError("existing.quotas", expected=f"a quota of cluster {query.cluster_id!r}", received=dict(self.quotas))
            if not 0.0 < query.propensity <= 1.0:
                raise InvalidValueError(f"propensity of {query.item_id!r}", expected="within (0, 1]", received=query.propensity)
        total = sum(self.quotas.values())
        if not abs(total - len(self.queries)) <= _ROUNDING * max(total, 1.0):
            raise InvalidValueError("existing.quotas", expected=f"a sum of {len(self.queries)}, the queries", received=total)

    def covered_by(self, cluster_ids: Sequence[str]) -> bool:
        """Whether every cluster of the choice is known."""
        return set(self.quotas) <= set(cluster_ids)


def check_mode(mode: str, existing: Existing | None) -> None:
    """Refuse a request that does not fit the mode: a choice is passed in the modes that serve one, and in no other.

    Raises: InvalidValueError.
    """
    if (mode == ONLINE) != (existing is None):
        expected = "no choice of your own in the mode 'online'" if mode == ONLINE else f"your own choice in the mode {mode!r}"
        raise InvalidValueError("existing", expected=expected, received=existing)


def served_as_passed(decision: Decision, existing: Existing, mode: str) -> Decision:
    """The decision as it is logged: the caller's queries and quotas, with the features that our own policies saw.

    Scores stay ours, so that the log shows what they would have preferred; quotas of clusters that the caller never draws are 0.
    """
    quotas = [existing.quotas.get(cluster_id, 0.0) for cluster_id in decision.cluster_ids]
    caps = [max(cap, quota) for cap, quota in zip(decision.caps, quotas, strict=True)]
    return msgspec.structs.replace(
        decision, policy=EXISTING, mode=mode, k=len(existing.queries), queries=list(existing.queries), quotas=quotas, caps=caps
    )


def unlogged(existing: Existing, reason: str, *, degraded: bool) -> Selection:
    """A caller's own choice for a user who has no such clusters: it is served all the same."""
    return Selection(
        decision_id="",
        queries=existing.queries,
        policy=EXISTING,
        model_version="",
        degraded=degraded,
        logged=False,
        reason=reason,
        quotas=existing.quotas,
    )
