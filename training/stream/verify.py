"""Verify: the stream's sums against the batch fold over the same events, for every user, and each row in the online store against both."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import redis

from bandit.records import Decision, Feedback
from bandit.rewards.sums import MAX_CLUSTERS, SumsDefinition, UserSums
from bandit.settings.load import Settings
from bandit.types import ClusterRewards, Floats
from feature_repo.connection import connect, translated
from feature_repo.keys import PARTITIONS, Keys, parse
from training.features.feature_store import online_rows
from training.logs.archive import Batch, read_entry, stream_entries
from training.logs.decisions import decision_table
from training.logs.feedback import feedback_table
from training.stream.rebuild import users_from_logs
from training.stream.state import StreamState

RELATIVE = 1e-9
_ABSOLUTE = 1e-12  # below a sum's own rounding: rewards of both signs may cancel
_FADED = 1e-6  # the stream drops clusters that have faded to nothing
_ROUNDS = 4  # users with traffic differ until they are looked at between two events
_PAUSE_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """users: compared; waiting: entries that the stream has not folded yet; largest: relative difference; differing: user and how."""

    users: int
    waiting: int
    largest: float
    differing: dict[str, str]

    def counts(self) -> dict[str, float]:
        """The same without the users."""
        return {"users": self.users, "waiting": self.waiting, "largest_difference": self.largest, "differing": len(self.differing)}


def verify(settings: Settings) -> Verified:
    """Compare every user; it looks at differing users again, because events may be on their way.

    Raises: DependencyUnavailableError, InvalidTableError.
    """
    client, keys = connect(settings.redis_url), Keys.of(settings.feature_repo_path)
    definition = settings.reward.sums_definition()
    suspects: Collection[str] | None = None
    largest, users = 0.0, 0
    problems: dict[str, str] = {}
    with translated(settings.redis_url):
        for number in range(_ROUNDS):
            if number:
                time.sleep(_PAUSE_SECONDS)
            stream, extra, decided = _snapshot(client, keys, settings, definition)
            batch = dict(users_from_logs(settings, definition, extra, decided, now=client.time()[0] * 1_000_000))
            rows = online_rows(settings, client)
            problems, differences = {}, [0.0]
            for user in sorted(suspects if suspects is not None else {*stream, *batch}):
                problem, difference = _compare(stream.get(user), batch.get(user), rows.read(user))
                if problem:
                    problems[user] = problem
                else:
                    differences.append(difference)
            users = users or len({*stream, *batch})
            largest = max(largest, *differences)
            suspects = list(problems)
            if not problems:
                break
        return Verified(users=users, waiting=_waiting(client, keys), largest=largest, differing=problems)


def _snapshot(
    client: redis.Redis, keys: Keys, settings: Settings, definition: SumsDefinition
) -> tuple[dict[str, UserSums], pa.Table, pa.Table]:
    """Sums of every user, and the folded entries that are still in the streams: they may not be in Parquet yet.

    In this order (sums, streams, and then the logs), what leaves a stream in between is in the logs.
    """
    state = StreamState(client, keys, window=settings.stream.window, folding=definition.fingerprint)
    sums_by_user = {}
    stored = list(client.scan_iter(match=keys.every_partition.sums("*"), count=10_000))
    positions, _ = state.load(dict.fromkeys(range(PARTITIONS), 0))
    for start in range(0, len(stored), 1000):
        chunk = stored[start : start + 1000]
        for key, data in zip(chunk, client.mget(chunk), strict=True):
            if data is not None:
                sums_by_user[parse(key.decode()).of] = UserSums(definition, data)
    validator, left = settings.feedback_validator(), Batch()
    for partition in positions.values():
        of = keys.partition(partition.number)
        for stream, last in ((of.feedback, partition.feedback), (of.decisions, partition.decisions)):
            for entries in stream_entries(client, stream, last):
                for entry_id, fields in entries:
                    record = read_entry(stream, entry_id.decode(), fields, validator)
                    if isinstance(record, Feedback | Decision) and _has_room(sums_by_user.get(record.user_id), record):
                        left.add(stream, entry_id.decode(), record, b"")
    return sums_by_user, feedback_table(left.feedback), decision_table(left.decisions)


def _has_room(sums: UserSums | None, record: Feedback | Decision) -> bool:
    """Whether the stream took a record: its user had room for its clusters."""
    named = [record.cluster_id] if isinstance(record, Feedback) else [query.cluster_id for query in record.queries]
    return len({*(sums.cluster_ids if sums is not None else ()), *named}) <= MAX_CLUSTERS


def _waiting(client: redis.Redis, keys: Keys) -> int:
    """Entries after the position of their partition."""
    pipeline = client.pipeline(transaction=False)
    for number in range(PARTITIONS):
        pipeline.hmget(keys.partition(number).state, "feedback", "decisions")
    count = 0
    for number, positions in enumerate(pipeline.execute()):
        of = keys.partition(number)
        for stream, position in zip((of.feedback, of.decisions), positions, strict=True):
            start = "(" + position.decode() if position else "-"
            count += len(client.xrange(stream, min=start))
    return count


def _compare(stream: UserSums | None, batch: UserSums | None, row: ClusterRewards | None) -> tuple[str, float]:
    """The problem (empty for none), and the largest relative difference."""
    if stream is None or batch is None:
        missing, present = ("stream", batch) if stream is None else ("batch fold", stream)
        return (f"missing in the {missing}", 0.0) if present is not None and (np.abs(present.values) > _FADED).any() else ("", 0.0)
    to = max(stream.as_of, batch.as_of)
    if row is None or row.as_of != stream.as_of or not _same_row(stream.rewards(), row):
        return "the row in the online store is not the stream's", 0.0
    stream.move(to)
    batch.move(to)
    ids = sorted({*stream.cluster_ids, *batch.cluster_ids})
    left, right = _values(stream, ids), _values(batch, ids)
    gap = np.abs(left - right)
    allowed = RELATIVE * np.maximum(np.abs(left), np.abs(right)) + _ABSOLUTE
    alone = np.array([cluster not in stream.cluster_ids for cluster in ids])
    allowed[alone] = _FADED
    if (gap > allowed).any():
        worst = int(np.argmax((gap - allowed).max(axis=1)))
        return f"cluster {ids[worst]!r}: {left[worst].tolist()} in the stream, {right[worst].tolist()} in the batch fold", 0.0
    size = np.maximum(np.abs(left), np.abs(right))
    return "", float(np.divide(gap, size, out=np.zeros_like(gap), where=size > _ABSOLUTE).max(initial=0.0))


def _values(sums: UserSums, ids: list[str]) -> Floats:
    row_of = {cluster: row for row, cluster in enumerate(sums.cluster_ids)}
    empty = np.zeros(sums.values.shape[1])
    return np.array([sums.values[row_of[cluster]] if cluster in row_of else empty for cluster in ids])


def _same_row(sums: ClusterRewards, row: ClusterRewards) -> bool:
    return sums.cluster_ids == row.cluster_ids and np.array_equal(sums.sums.values, row.sums.values)
