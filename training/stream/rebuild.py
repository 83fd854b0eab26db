"""Rebuild the online state from the Parquet logs, while serving continues.

A partition without a state (a new deployment, a Redis that lost its data, settings that give other sums) gets its sums from the batch fold
and the ids of recent events. Then the consumer reads its streams from their beginning, and recognises logged events by their ids.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from itertools import islice

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import redis

from bandit.rewards.feedback import FUTURE_TOLERANCE
from bandit.rewards.sums import SumsDefinition, UserSums
from bandit.settings.load import Settings
from bandit.types import SUM_NAMES, ClusterRewards, Sums
from feature_repo import names
from feature_repo.keys import parse, partition
from training.features.decayed_sums import ordered, read_draws, rows_per_user, sums
from training.features.online_rows import RewardRows
from training.logs.archive import arrival
from training.logs.engine import engine, epoch_us
from training.logs.lineage import read_lineage
from training.logs.open_logs import Log, open_log
from training.logs.schemas import DECISIONS, FEEDBACK
from training.stream.state import Partition, StreamState, decision_key, event_key

log = logging.getLogger(__name__)

_USERS_PER_WRITE = 100
_IDS_PER_CALL = 5000


def rebuild(
    settings: Settings, client: redis.Redis, state: StreamState, definition: SumsDefinition, fences: Mapping[int, int], rows: RewardRows
) -> int:
    """Compute the sums, the seen ids and the rows of these partitions again; returns the number of users.

    Raises: redis.RedisError, InvalidTableError for logs that cannot be read.
    """
    log.info("rebuilding the state of %d partitions from the logs", len(fences))
    users = 0
    _forget(client, state, fences)
    waiting: dict[int, dict[str, UserSums]] = {number: {} for number in fences}
    for user, user_sums in users_from_logs(settings, definition, now=client.time()[0] * 1_000_000):
        number = partition(user)
        if number in waiting:
            waiting[number][user] = user_sums
            users += 1
            if len(waiting[number]) >= _USERS_PER_WRITE:
                _restore(client, state, rows, number, fences[number], waiting[number])
                waiting[number] = {}
    for number, remaining in waiting.items():
        if remaining:
            _restore(client, state, rows, number, fences[number], remaining)
    _remember(settings, client, state, fences)
    state.begin(fences)
    return users


def users_from_logs(
    settings: Settings,
    definition: SumsDefinition,
    events: pa.Table | None = None,
    decisions: pa.Table | None = None,
    *,
    now: int | None = None,
) -> Iterator[tuple[str, UserSums]]:
    """Each user's sums by the batch fold, at the time of the log's latest event.

    Args:
        settings: where the logs are.
        definition: weights and half-lives.
        events: in addition to the log, `FEEDBACK` rows.
        decisions: in addition to the log, `DECISIONS` rows.
        now: UTC microseconds; events of the future do not count. None: there are none.
    """
    with (
        open_log(settings, "feedback", now=now, required=False) as feedback_log,
        open_log(settings, "decisions", now=now, required=False) as decision_log,
    ):
        connection = engine()
        happened, draws = _events(feedback_log, connection, events), read_draws(connection, decision_log, decisions)
        yield from _users(settings, definition, happened, draws)


def _users(settings: Settings, definition: SumsDefinition, happened: ir.Table, draws: ir.Table) -> Iterator[tuple[str, UserSums]]:
    latest = happened.aggregate(at=epoch_us(happened.occurred_at.max())).union(draws.aggregate(at=epoch_us(draws.drawn_at.max())))
    as_of = latest.at.max().to_pyarrow().as_py()
    if as_of is None:
        return
    history = read_lineage(settings, 2**63 - 1)
    by_cluster = sums(happened, draws, as_of=as_of, definition=definition, lineage=history)
    for batch in rows_per_user(ordered(by_cluster), as_of=as_of).to_batches():
        for row in batch.to_pylist():
            values = Sums(np.array([row[name] for name in SUM_NAMES], np.float64))
            rewards = ClusterRewards(cluster_ids=row[names.REWARDED_CLUSTERS], as_of=as_of, sums=values)
            yield row["user_id"], UserSums.of(definition, rewards, history.get(row["user_id"], []))


def _events(log: Log, connection: ibis.BaseBackend, extra: pa.Table | None) -> ir.Table:
    events = log.read(connection)
    return events if extra is None else events.union(ibis.memtable(extra))


def _restore(client: redis.Redis, state: StreamState, rows: RewardRows, number: int, fence: int, user_sums: Mapping[str, UserSums]) -> None:
    state.restore(number, fence, {user: sums_of_user.to_bytes() for user, sums_of_user in user_sums.items()})
    version = Partition(number=number, fence=fence, commits=0, feedback="", decisions="").version
    pipeline = client.pipeline(transaction=False)
    for user, sums_of_user in user_sums.items():
        rows.write(pipeline, user, sums_of_user, version)
    pipeline.execute()


def _forget(client: redis.Redis, state: StreamState, fences: Mapping[int, int]) -> None:
    """Remove the keys of an earlier state: its sums may have another definition, and its seen ids may not be in the logs yet."""
    for pattern in (state.keys.every_partition.sums("*"), state.keys.every_partition.seen("*")):
        keys = client.scan_iter(match=pattern, count=10_000)
        while chunk := list(islice(keys, 1000)):
            keys_by_partition: dict[int, list[bytes]] = {}
            for key in chunk:
                keys_by_partition.setdefault(parse(key.decode()).number, []).append(key)
            for number in keys_by_partition.keys() & fences.keys():
                state.forget(number, fences[number], keys_by_partition[number])


def _remember(settings: Settings, client: redis.Redis, state: StreamState, fences: Mapping[int, int]) -> None:
    """The ids of everything in the logs that may come again: from the streams, or from the feed while its window is open."""
    now = client.time()[0] * 1_000_000
    pipeline = client.pipeline(transaction=False)
    for number in fences:
        for stream in (state.keys.partition(number).feedback, state.keys.partition(number).decisions):
            pipeline.xrange(stream, count=1)
    oldest = min((arrival(entries[0][0].decode()) for entries in pipeline.execute() if entries), default=now)
    since = pa.scalar(min(now, oldest) - settings.stream.window - FUTURE_TOLERANCE, pa.int64()).cast(FEEDBACK.field("occurred_at").type)
    for log_name, schema, key, time, digest in (
        ("feedback", FEEDBACK, "event_id", "occurred_at", event_key),
        ("decisions", DECISIONS, "decision_id", "decided_at", decision_key),
    ):
        waiting: dict[int, list[bytes]] = {number: [] for number in fences}
        with open_log(settings, log_name, now=None, required=False) as log:
            table = ds.dataset(log.files(), schema=schema).scanner(columns=["user_id", key], filter=pc.field(time) >= since)
            for batch in table.to_batches():
                for user, name in zip(batch["user_id"].to_pylist(), batch[key].to_pylist(), strict=True):
                    number = partition(user)
                    if number in waiting:
                        waiting[number].append(digest(name))
                for number, ids in waiting.items():
                    if len(ids) >= _IDS_PER_CALL:
                        _remember_some(state, number, ids, now)
        for number, ids in waiting.items():
            _remember_some(state, number, ids, now)


def _remember_some(state: StreamState, number: int, ids: list[bytes], now: int) -> None:
    for start in range(0, len(ids), _IDS_PER_CALL):
        state.remember(number, ids[start : start + _IDS_PER_CALL], now)
    ids.clear()
