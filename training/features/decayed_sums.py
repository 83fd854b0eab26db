"""Decayed sums as expressions of the engine: terms to sums, sums to a later time, sums to the rows that Feast reads.

S(T) = sum of r_e * 2^(-(T - t_e) / h) over events e. Each term depends on its own time only: order does not matter, late events need
no special case, two partial sums merge by addition, and moving T is one multiplication.
"""

from __future__ import annotations

from datetime import UTC, datetime

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bandit.rewards.sums import DRAWN, SumsDefinition
from bandit.types import SUM_NAMES, SUMS
from feature_repo import names
from training.logs.engine import deduplicated, epoch_us
from training.logs.lineage import Lineage, credited
from training.logs.open_logs import Log
from training.logs.schemas import EVENTS


def sums(events: ir.Table, draws: ir.Table, *, as_of: int, definition: SumsDefinition, lineage: Lineage | None = None) -> ir.Table:
    """Decayed sums of each (user_id, cluster_id) at time `as_of`, one row each.

    Args:
        events: `Feedback` rows; the same event_id counts once, events after `as_of` not at all.
        draws: one row per drawn query: user_id, cluster_id, drawn_at (timestamp).
        as_of: reference time, UTC microseconds.
        definition: how events become sums.
        lineage: reclusterings of the users who have some; each term goes where its cluster went, in the same shares.

    Returns: user_id, cluster_id, the sums, and `events`, the number of rows counted.
    """
    unique = deduplicated(events.select("event_id", "user_id", "cluster_id", "action", "occurred_at"))
    happened = unique.select("user_id", "cluster_id", "action", at=epoch_us(unique.occurred_at))
    drawn = draws.select("user_id", "cluster_id", action=ibis.literal(DRAWN), at=epoch_us(draws.drawn_at))
    return sums_of_terms(happened.union(drawn), as_of=as_of, definition=definition, lineage=lineage)


def sums_of_terms(rows: ir.Table, *, as_of: int, definition: SumsDefinition, lineage: Lineage | None = None) -> ir.Table:
    """As `sums`, of rows (user_id, cluster_id, action, at) of which each counts; of a draw the action is `DRAWN`."""
    rows = rows.filter(rows.at <= as_of)
    if lineage:
        rows = credited(rows, lineage)

    def faded(half_life: int) -> ir.FloatingColumn:
        factor = ibis.literal(2.0) ** ((rows.at - as_of) / float(half_life))
        return factor * rows.share if lineage else factor

    def amount(of: str) -> ir.FloatingColumn:
        return ibis.cases(*((rows.action == action, float(each)) for action, each in definition.amounts[of].items()), else_=0.0)

    half_lives = {name: faded(getattr(definition.half_lives, name)) for name in {each.half_life for each in SUMS}}
    rows = rows.mutate(**half_lives, **{of: amount(of) for of in definition.amounts})
    added = {each.name: (rows[each.half_life] * rows[each.of]).sum() for each in SUMS}
    return rows.group_by("user_id", "cluster_id").agg(**added, **{EVENTS: rows.count(where=rows["first"]) if lineage else rows.count()})


def moved(cluster_sums: ir.Table, *, since: int, to: int, definition: SumsDefinition, changes: Lineage) -> ir.Table:
    """What `sums` gave as of `since`, as of `to`: each sum has faded, and has gone where the clusterings since then took its cluster.

    A reclustering is a linear map: the sums go as one event of the time `since` would.
    """
    factors = dict(zip(SUM_NAMES, definition.half_lives.factors(to - since).tolist(), strict=True))
    if not changes:
        return cluster_sums.mutate(**{name: cluster_sums[name] * factor for name, factor in factors.items()})
    rows = credited(cluster_sums.mutate(at=ibis.literal(since)), changes)
    faded = {name: rows[name] * rows.share * factor for name, factor in factors.items()}
    return rows.select("user_id", "cluster_id", **faded, **{EVENTS: ibis.ifelse(rows["first"], rows[EVENTS], 0)})


def merged(*parts: ir.Table) -> ir.Table:
    """Sums of the same time, added up."""
    rows = ibis.union(*(part.select("user_id", "cluster_id", *SUM_NAMES, EVENTS) for part in parts))
    total = {name: rows[name].sum() for name in SUM_NAMES}
    return rows.group_by("user_id", "cluster_id").agg(**total, **{EVENTS: rows[EVENTS].sum().cast("int64")})


def ordered(cluster_sums: ir.Table) -> pa.Table:
    """The sums, computed, in order of user_id and cluster_id. The engine sorts: it needs less memory for it than for ordered lists."""
    return cluster_sums.order_by("user_id", "cluster_id").to_pyarrow()


def rows_per_user(table: pa.Table, *, as_of: int) -> pa.Table:
    """The rows that Feast reads, of sums in order: one per user; arrays are cut out of the columns (`benchmarks/fold_vs_sql.py`)."""
    users = table["user_id"].combine_chunks()
    changes = pc.not_equal(users.slice(1), users.slice(0, max(len(users) - 1, 0))).to_numpy(zero_copy_only=False)
    starts = np.concatenate(([0] if len(users) else [], np.flatnonzero(changes) + 1)).astype(np.int32)
    offsets = np.append(starts, np.int32(len(users)))

    def lists(name: str) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(offsets), table[name].combine_chunks())

    per_user = len(starts)
    return pa.table(
        {
            "user_id": users.take(pa.array(starts)),
            names.REWARDED_CLUSTERS: lists("cluster_id"),
            **{name: lists(name) for name in SUM_NAMES},
            EVENTS: pa.array(np.add.reduceat(table[EVENTS].to_numpy(), starts) if per_user else [], pa.int64()),
            names.AS_OF: pa.array(np.full(per_user, as_of), pa.int64()),
            names.TIMESTAMP: pa.array([datetime.fromtimestamp(as_of / 1e6, UTC).replace(tzinfo=None)] * per_user, pa.timestamp("us")),
        }
    )


def read_draws(connection: ibis.BaseBackend, log: Log, extra: pa.Table | None = None) -> ir.Table:
    """One row per drawn query of the decision log: user_id, cluster_id, drawn_at; none when there is no log yet.

    Args:
        connection: the engine.
        log: of decisions.
        extra: decisions beside those of the log, `DECISIONS` rows; the same decision_id counts once.
    """
    columns = ["decision_id", "user_id", "decided_at", "queries"]
    decisions = log.read(connection).select(columns)
    if extra is not None:
        decisions = decisions.union(ibis.memtable(extra.select(columns)))
    decisions = decisions.distinct(on="decision_id")
    queries = decisions.select("user_id", "decided_at", query=decisions.queries.unnest())
    return queries.select("user_id", cluster_id=queries.query.cluster_id, drawn_at=queries.decided_at)
