"""Fold: feedback and decision logs to each user's decayed sums, as one snapshot of `cluster_rewards`.

S(T) = sum of r_e * 2^(-(T - t_e) / h) over events e. Each term depends on its own time only: order does not matter, late events need
no special case, two partial sums merge by addition, and moving T is one multiplication.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bandit.rewards.sums import DRAWN, SumsDefinition
from bandit.settings.load import Settings
from bandit.types import SUM_NAMES, SUMS
from feature_repo import names
from training.features.snapshots import write_snapshot
from training.logs.engine import deduplicated, engine, epoch_us
from training.logs.lineage import Lineage, credited, read_lineage, timed_file
from training.logs.open_logs import Log, open_log, put_aside, read_snapshots
from training.logs.schemas import CLUSTER_REWARDS, EVENTS, RECLUSTERINGS
from training.logs.tables import write_table

_ROWS = CLUSTER_REWARDS.remove(CLUSTER_REWARDS.get_field_index(names.REWARDS_GENERATION))  # which is given when they are written


@dataclass(frozen=True, slots=True, kw_only=True)
class Folded:
    """What a fold did: users written, clusters in them, events counted once; rows and files put aside, with the reason."""

    users: int
    clusters: int
    events: int
    as_of: int
    rejected: Mapping[str, int]
    quarantined: Mapping[str, str]
    file: str


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
    rows = happened.union(drawn).filter(lambda t: t.at <= as_of)
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


def rows_per_user(cluster_sums: ir.Table, *, as_of: int) -> pa.Table:
    """The rows that Feast reads: one per user, in order of user_id; arrays are in order of cluster_id.

    The engine sorts, and the arrays are cut out of the sorted columns: ordered lists of ten columns at once took all of the memory
    (`benchmarks/fold_vs_sql.py`).
    """
    table = cluster_sums.order_by("user_id", "cluster_id").to_pyarrow()
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


def fold(settings: Settings, *, as_of: int, now: int) -> Folded:
    """Write the snapshot of `cluster_rewards` at `as_of`: the users with events that no earlier snapshot has counted.

    Users without news need no row: their sums only fade, and serving moves those to the time of the request.

    Raises: EmptyLogError, TooManyBadRowsError, InvalidTableError.
    """
    definition, lineage = settings.reward.sums_definition(), read_lineage(settings, as_of)
    connection = engine()
    with open_log(settings, "feedback", now=now) as feedback, open_log(settings, "decisions", now=now, required=False) as decisions:
        draws = read_draws(connection, decisions)
        cluster_sums = sums(feedback.read(connection), draws, as_of=as_of, definition=definition, lineage=lineage)
        table = rows_per_user(cluster_sums, as_of=as_of)
    gone_through = pa.array([len(lineage.get(user, ())) for user in table["user_id"].to_pylist()], pa.int64())
    table = table.append_column(RECLUSTERINGS, gone_through).select(_ROWS.names).cast(_ROWS)
    folder = settings.feature_repo_path / names.CLUSTER_REWARDS_PATH
    news = table.filter(_unseen(connection, settings, table, as_of))
    file = timed_file(folder, as_of)
    if news.num_rows or not file.parent.exists():
        _drop_former_columns(folder)
        write_snapshot(folder, news, CLUSTER_REWARDS, as_of=as_of)
    return Folded(
        users=news.num_rows,
        clusters=pc.sum(pc.list_value_length(news[names.REWARDED_CLUSTERS])).as_py() or 0,
        events=pc.sum(table[EVENTS]).as_py() or 0,
        as_of=as_of,
        **put_aside(feedback, decisions),
        file=str(file),
    )


def _drop_former_columns(folder: Path) -> None:
    """Write snapshots of earlier versions without columns that are no features any more: DuckDB wants of every file what the first has."""
    for file in sorted(folder.glob("*.parquet")):
        columns = pq.read_schema(file).names
        if former := set(columns) - {*CLUSTER_REWARDS.names}:
            write_table(pq.read_table(file, partitioning=None).drop_columns(list(former)), file)


def _unseen(connection: ibis.BaseBackend, settings: Settings, table: pa.Table, as_of: int) -> pa.Array:
    """Mask of the users whose number of events, or of reclusterings, differs from their newest earlier snapshot."""
    seen: dict[str, tuple[int, int]] = {}
    past = read_snapshots(settings, connection)
    if past is not None:
        if RECLUSTERINGS not in past.columns:
            past = past.mutate(**{RECLUSTERINGS: ibis.literal(0)})
        past = past.filter(past[names.AS_OF] < as_of)
        newest = past.group_by("user_id").agg(
            events=past[EVENTS].argmax(past[names.AS_OF]),
            reclusterings=past[RECLUSTERINGS].fill_null(0).argmax(past[names.AS_OF]),
        )
        columns = newest.to_pyarrow().to_pydict()
        seen = dict(zip(columns["user_id"], zip(columns["events"], columns["reclusterings"], strict=True), strict=True))
    rows = zip(*(table[name].to_pylist() for name in ("user_id", EVENTS, RECLUSTERINGS)), strict=True)
    return pa.array([seen.get(user) != (events, reclusterings) for user, events, reclusterings in rows], pa.bool_())
