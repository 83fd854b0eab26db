"""Events and decisions of the intake window, each once: what arrives again is told by its id, and what is later than a fold waits here."""

from __future__ import annotations

from dataclasses import dataclass

import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.compute as pc

from bandit.errors import FoldStateError
from bandit.rewards.sums import DRAWN
from training.logs.engine import deduplicated, epoch_us

_TERMS = ["user_id", "cluster_id", "action", "at"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecentTerms:
    """events: event_id, user_id, cluster_id, action, at (UTC microseconds); decisions: decision_id, user_id, at, clusters of its draws."""

    events: pa.Table
    decisions: pa.Table

    @classmethod
    def of_logs(cls, events: ir.Table, decisions: ir.Table, *, since: int) -> RecentTerms:
        """Those of the logs from this time on, each id once."""
        late = events.filter(epoch_us(events.occurred_at) >= since)
        unique = deduplicated(late.select("event_id", "user_id", "cluster_id", "action", "occurred_at"))
        unique = unique.select("event_id", "user_id", "cluster_id", "action", at=epoch_us(unique.occurred_at))
        made = decisions.filter(epoch_us(decisions.decided_at) >= since).distinct(on="decision_id")
        made = made.select(
            "decision_id", "user_id", at=epoch_us(made.decided_at), clusters=made.queries.map(lambda query: query.cluster_id)
        )
        return cls(events=unique.to_pyarrow().combine_chunks(), decisions=made.to_pyarrow().combine_chunks())

    def from_time(self, time: int) -> RecentTerms:
        """Those from this time on."""
        return RecentTerms(events=_from(self.events, time), decisions=_from(self.decisions, time))

    def extended(self, arrived: RecentTerms, *, after: int, until: int) -> tuple[pa.Table, RecentTerms]:
        """Terms that a fold must add, and these with those that arrived.

        Args:
            arrived: what new files hold; ids that are known do not count again.
            after: time of the last fold: later ones waited.
            until: time of this fold: later ones wait.

        Returns: rows of user_id, cluster_id, action, at, and everything of the window.

        Raises: FoldStateError when an event comes again with other values.
        """
        again = pc.is_in(arrived.events["event_id"], self.events["event_id"])
        repeated = arrived.events.filter(again)
        known = self.events.filter(pc.is_in(self.events["event_id"], repeated["event_id"]))
        if not repeated.sort_by("event_id").equals(known.sort_by("event_id")):
            raise FoldStateError("an event has come again with other values")
        events = arrived.events.filter(pc.invert(again))
        made = arrived.decisions.filter(pc.invert(pc.is_in(arrived.decisions["decision_id"], self.decisions["decision_id"])))
        added = RecentTerms(
            events=pa.concat_tables([_from(self.events, after + 1), events]),
            decisions=pa.concat_tables([_from(self.decisions, after + 1), made]),
        )
        together = RecentTerms(events=pa.concat_tables([self.events, events]), decisions=pa.concat_tables([self.decisions, made]))
        return added._terms(until), together

    def _terms(self, until: int) -> pa.Table:
        decisions = self.decisions.combine_chunks()
        clusters = decisions["clusters"].combine_chunks()
        drawn = decisions.select(["user_id", "at"]).take(pc.list_parent_indices(clusters))
        drawn = drawn.append_column("cluster_id", pc.list_flatten(clusters))
        drawn = drawn.append_column("action", pa.array([DRAWN] * len(drawn), pa.string()))
        terms = pa.concat_tables([self.events.select(_TERMS), drawn.select(_TERMS)])
        return terms.filter(pc.less_equal(terms["at"], until))


def _from(table: pa.Table, time: int) -> pa.Table:
    return table.filter(pc.greater_equal(table["at"], time))
