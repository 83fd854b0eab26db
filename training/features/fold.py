"""Fold: feedback and decision logs to each user's decayed sums, as one snapshot of `cluster_rewards`.

A fold costs what is new: the sums of the last fold fade, go where clusterings since then took their clusters, and get the terms that
arrived meanwhile (`fold_state.py`). When these do not lead to the sums of the logs, everything is folded, and the result says why.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import ibis
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bandit.errors import FoldStateError
from bandit.settings.load import Settings
from bandit.types import MICROSECONDS_PER_DAY, MICROSECONDS_PER_MINUTE
from feature_repo import names
from training.features.decayed_sums import merged, moved, ordered, read_draws, rows_per_user, sums, sums_of_terms
from training.features.fold_state import (
    DECISIONS_TABLE,
    EVENTS_TABLE,
    SUMS_TABLE,
    FoldState,
    LogNews,
    changes_since,
    last_state,
    lineage_marks,
    log_news,
    snapshot_marks,
    table_file,
    usable_state,
    write_state,
)
from training.features.recent_terms import RecentTerms
from training.features.snapshots import merge_snapshots, write_snapshot
from training.logs.engine import engine
from training.logs.lineage import Lineage, read_lineage, timed_file
from training.logs.open_logs import Log, open_log, put_aside, read_engine, read_snapshots
from training.logs.schemas import CLUSTER_REWARDS, EVENTS, RECLUSTERINGS
from training.logs.tables import read_own, write_table

_ROWS = CLUSTER_REWARDS.remove(CLUSTER_REWARDS.get_field_index(names.REWARDS_GENERATION))  # which is given when they are written
_MARGIN = 60 * MICROSECONDS_PER_MINUTE  # events wait a little between their arrival and the log


@dataclass(frozen=True, slots=True, kw_only=True)
class Folded:
    """What a fold did: users written, clusters in them, events counted once; rows and files put aside, with the reason.

    full: why everything was folded; empty when what is new was.
    """

    users: int
    clusters: int
    events: int
    as_of: int
    rejected: Mapping[str, int]
    quarantined: Mapping[str, str]
    file: str
    full: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Summed:
    """Sums of every user's clusters in order, the terms from `since` on, and the users who need a new row (None: those who differ)."""

    sums: pa.Table
    recent: RecentTerms
    since: int
    changed: pa.Array | None
    lineage: Lineage
    logs: Mapping[str, Log]


def fold(settings: Settings, *, as_of: int, now: int, full: bool = False) -> Folded:
    """Write the snapshot of `cluster_rewards` at `as_of`: the users with events that no earlier snapshot has counted.

    Users without news need no row: their sums only fade, and serving moves those to the time of the request.

    Args:
        settings: of the deployment.
        as_of: reference time, UTC microseconds.
        now: UTC microseconds; events of the future wait.
        full: fold everything, also when the last fold's sums would do.

    Raises: EmptyLogError, TooManyBadRowsError, InvalidTableError, StorageError.
    """
    reason = "it was asked for"
    if not full:
        try:
            state = usable_state(settings, as_of=as_of)
            news = log_news(settings, state)
            if state.as_of == as_of:
                return _same_again(settings, state, news)
            return _finished(settings, _news_summed(settings, state, news, as_of=as_of, now=now), news, state, as_of=as_of)
        except FoldStateError as error:
            reason = error.reason
    news = log_news(settings, None)
    return _finished(settings, _all_summed(settings, as_of=as_of, now=now), news, None, as_of=as_of, reason=reason)


def _same_again(settings: Settings, state: FoldState, news: LogNews) -> Folded:
    if news.fresh:
        raise FoldStateError("it is as of the time of the last fold, and files have come since")
    file = timed_file(settings.feature_repo_path / names.CLUSTER_REWARDS_PATH, state.as_of)
    return Folded(
        users=state.users,
        clusters=state.clusters,
        events=state.events,
        as_of=state.as_of,
        rejected={},
        quarantined={},
        file=str(file),
        full=state.full,
    )


def _all_summed(settings: Settings, *, as_of: int, now: int) -> _Summed:
    definition, lineage = settings.reward.sums_definition(), read_lineage(settings, as_of)
    connection = engine()
    with open_log(settings, "feedback", now=now) as feedback, open_log(settings, "decisions", now=now, required=False) as decisions:
        events, draws = feedback.read(connection), read_draws(connection, decisions)
        table = ordered(sums(events, draws, as_of=as_of, definition=definition, lineage=lineage))
        since = as_of - settings.stream.window - _MARGIN
        recent = RecentTerms.of_logs(events, decisions.read(connection), since=since)
    logs = {"feedback": feedback, "decisions": decisions}
    return _Summed(sums=table, recent=recent, since=since, changed=None, lineage=lineage, logs=logs)


def _news_summed(settings: Settings, state: FoldState, news: LogNews, *, as_of: int, now: int) -> _Summed:
    definition, lineage = settings.reward.sums_definition(), read_lineage(settings, as_of)
    changes = changes_since(settings, state, as_of)
    data, connection = settings.data_path, engine()

    def is_news(file: Path) -> bool:
        return str(file.relative_to(data)) in {*news.fresh, *news.again}

    def log(name: str) -> contextlib.AbstractContextManager[Log]:
        return open_log(settings, name, now=now, only=is_news, rows=state.rows[name], required=False)

    with log("feedback") as feedback, log("decisions") as decisions:
        fresh = {data / name for name in news.fresh}
        _refuse_older(feedback, fresh, "occurred_at", state.since)
        _refuse_older(decisions, fresh, "decided_at", state.since)
        arrived = RecentTerms.of_logs(feedback.read(connection), decisions.read(connection), since=state.since)
    kept = RecentTerms(events=_table(settings, state, EVENTS_TABLE), decisions=_table(settings, state, DECISIONS_TABLE))
    terms, recent = kept.extended(arrived, after=state.as_of, until=as_of)
    before = read_engine(connection, [table_file(settings, state, SUMS_TABLE)])
    before = moved(before, since=state.as_of, to=as_of, definition=definition, changes=changes)
    added = sums_of_terms(ibis.memtable(terms), as_of=as_of, definition=definition, lineage=lineage)
    since = max(state.since, as_of - settings.stream.window - _MARGIN)
    return _Summed(
        sums=ordered(merged(before, added)),
        recent=recent.from_time(since),
        since=since,
        changed=pa.array(sorted({*terms["user_id"].unique().to_pylist(), *changes}), pa.string()),
        lineage=lineage,
        logs={"feedback": feedback, "decisions": decisions},
    )


def _finished(settings: Settings, summed: _Summed, news: LogNews, state: FoldState | None, *, as_of: int, reason: str = "") -> Folded:
    """Write the snapshot, then the state that belongs to it."""
    folder = settings.feature_repo_path / names.CLUSTER_REWARDS_PATH
    changed = summed.changed
    rows = rows_per_user(summed.sums if changed is None else summed.sums.filter(pc.is_in(summed.sums["user_id"], changed)), as_of=as_of)
    gone_through = pa.array([len(summed.lineage.get(user, ())) for user in rows["user_id"].to_pylist()], pa.int64())
    rows = rows.append_column(RECLUSTERINGS, gone_through).select(_ROWS.names).cast(_ROWS)
    if changed is None:
        rows = rows.filter(_unseen(engine(), settings, rows, as_of))
        _drop_former_columns(folder)
    file = timed_file(folder, as_of)
    if rows.num_rows or not file.parent.exists():
        write_snapshot(folder, rows, CLUSTER_REWARDS, as_of=as_of)
    merge_snapshots(folder, CLUSTER_REWARDS, until=as_of - round(settings.retention.snapshot_days * MICROSECONDS_PER_DAY))
    result = Folded(
        users=rows.num_rows,
        clusters=pc.sum(pc.list_value_length(rows[names.REWARDED_CLUSTERS])).as_py() or 0,
        events=pc.sum(summed.sums[EVENTS]).as_py() or 0,
        as_of=as_of,
        **put_aside(*summed.logs.values()),
        file=str(file),
        full=reason,
    )
    _remember(settings, summed, news, state, result)
    return result


def _remember(settings: Settings, summed: _Summed, news: LogNews, state: FoldState | None, result: Folded) -> None:
    """Leave the state for the next fold. One of a later time stays: this fold was a look back."""
    generation = 1
    with contextlib.suppress(FoldStateError):
        last = last_state(settings)
        if last.as_of > result.as_of:
            return
        generation = last.generation + 1
    read: set[str] = set()
    again: list[str] = []
    rows = dict(state.rows) if state else dict.fromkeys(summed.logs, 0)
    for log_name, log in summed.logs.items():
        waiting = any(reason.endswith("in the future") for reason in log.rejected)
        for part in log.parts:
            name = str(part.file.relative_to(settings.data_path))
            read |= {name} & news.marks.keys()  # what came while this fold ran waits for the next
            rows[log_name] += 0 if name in news.again else part.rows
            again += [name] if waiting and part.bad else []
    left = FoldState(
        generation=generation,
        as_of=result.as_of,
        since=summed.since,
        fingerprint=settings.reward.sums_definition().fingerprint,
        files={name: news.marks[name] for name in sorted({*news.counted, *read})},
        snapshots=snapshot_marks(settings),
        lineage=lineage_marks(settings, until=result.as_of),
        again=sorted(again),
        rows=rows,
        tables={},
        users=result.users,
        clusters=result.clusters,
        events=result.events,
        full=result.full,
    )
    write_state(settings, left, {SUMS_TABLE: summed.sums, EVENTS_TABLE: summed.recent.events, DECISIONS_TABLE: summed.recent.decisions})


def _refuse_older(log: Log, files: Collection[Path], column: str, since: int) -> None:
    """Of what is older than the ids that are kept nobody can tell whether it was counted. Raises: FoldStateError."""
    for part in log.parts:
        if part.file in files:
            earliest = pc.min(read_own(part.clean, columns=[column])[column].cast(pa.int64())).as_py()
            if earliest is not None and earliest < since:
                raise FoldStateError(f"{part.file.name} is new, and holds what is older than the intake window")


def _table(settings: Settings, state: FoldState, name: str) -> pa.Table:
    return read_own(table_file(settings, state, name))


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
