"""The consumer: feedback and decisions of the owned partitions, folded into each user's sums, exactly once.

One step: read new entries; look up which are known, and the sums of the users they belong to; add; commit each partition in one Lua call
(`training/stream/state.py`); overwrite the users' rows in Feast's online store. After any failure in between the consumer repeats
the step: nothing counts that only this process has in memory.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from itertools import groupby
from operator import attrgetter
from typing import Any

import redis

from bandit.rewards.feedback import Rejected
from bandit.rewards.sums import UserSums
from bandit.settings.load import Settings
from feature_repo.keys import Keys, parse
from training.features.online_rows import RewardRows
from training.logs.archive import arrival, stream_entries
from training.stream.apply import Entry, Work, entry_of
from training.stream.archiver import Archiver
from training.stream.leases import Leases
from training.stream.metrics import StreamMetrics
from training.stream.rebuild import rebuild
from training.stream.state import BEGINNING, Commit, Partition, StreamState

log = logging.getLogger(__name__)

_BLOCK_MILLISECONDS = 250
_ENTRIES_PER_STEP = 4000
_LEAST_PER_STREAM = 16
_RETRY_SECONDS = 0.2
_stream_of = attrgetter("stream")


class Consumer:
    """Folds new entries. One per process; processes share the partitions."""

    def __init__(self, settings: Settings, client: redis.Redis, rows: RewardRows, metrics: StreamMetrics | None = None) -> None:
        """client: without retries of its own, with a socket timeout above a quarter of a second."""
        self._settings, self._client, self._rows = settings, client, rows
        self._metrics = metrics or StreamMetrics()
        self._definition = settings.reward.sums_definition()
        self._codes, self._validator = self._definition.action_codes, settings.feedback_validator()
        self._keys = keys = Keys.of(settings.feature_repo_path)
        self._state = StreamState(client, keys, window=settings.stream.window, folding=self._definition.fingerprint)
        self._leases = Leases(client, keys, uuid.uuid4().hex, seconds=settings.stream.lease_seconds)
        self._archiver = Archiver(settings.data_path, client, keys, seconds=settings.stream.archive_seconds)
        self._owned: dict[int, Partition] = {}
        self._per_stream = _LEAST_PER_STREAM

    @property
    def partitions(self) -> int:
        """How many partitions are owned now."""
        return len(self._owned)

    def run(self, stop: Callable[[], bool]) -> None:
        """Fold until `stop` returns true, then close. While Redis is unavailable or the disk is full, wait."""
        while not stop():
            try:
                self.step()
            except (redis.RedisError, OSError) as error:
                log.warning("the stream waits for %s: %s", "Redis" if isinstance(error, redis.RedisError) else "the disk", error)
                self._metrics.failures.inc()
                self._owned.clear()
                self._leases.forget()
                time.sleep(_RETRY_SECONDS)
        self.close()

    def flush(self) -> None:
        """Write every folded entry to Parquet now, and trim the streams.

        Raises: OSError when the disk does not take it.
        """
        self._archiver.flush()

    def close(self) -> None:
        """Write the folded entries to Parquet, and let others take the partitions."""
        try:
            self._archiver.close()
        except OSError as error:
            log.error("the logs cannot be written; the next owner will: %s", error)  # noqa: TRY400 -- one line
        try:
            self._leases.leave()
        except redis.RedisError as error:
            log.warning("the leases run out by themselves: %s", error)

    def step(self, *, block: bool = True) -> int:
        """Fold new entries; returns their number. Waits a quarter of a second for the first.

        Raises: redis.RedisError; the next step reads uncommitted entries again.
        """
        if self._leases.due:
            self.balance_now()
        if self._archiver.full:
            time.sleep(_RETRY_SECONDS if block else 0.0)
            self._archiver.put_away_if_due()
            return 0
        with _uncollected():
            works = self.read(block=block)
            started = time.monotonic()
            if works:
                self.fold(works)
                self.commit(works)
        count = sum(len(work.entries) for work in works)
        oldest = min((arrival(work.entries[0].id) for work in works), default=None)
        lag = time.time() - oldest / 1e6 if oldest is not None else 0.0
        self._metrics.observe(count, time.monotonic() - started, max(lag, 0.0), len(self._owned))
        self._archiver.put_away_if_due()
        return count

    def balance_now(self) -> None:
        """Renew the leases, take or give back partitions, and prepare those that this process took.

        Raises: redis.RedisError.
        """
        self._state.prepare()  # a Redis that restarted knows no scripts
        self._rows.prepare()
        taken = self._leases.balance()
        self._owned = {number: partition for number, partition in self._owned.items() if self._leases.fences.get(number) == partition.fence}
        self._measure_backlog()
        if not taken:
            return
        fences = {number: self._leases.fences[number] for number in taken}
        loaded, dirty = self._state.load(fences)
        stale = self._state.waited_too_long(loaded)
        missing = {number: fence for number, fence in fences.items() if number not in loaded or number in stale}
        if missing:
            with self._leases.kept():
                self.flush()  # entries that Redis has lost must be in the logs before `rebuild` reads them
                rebuild(self._settings, self._client, self._state, self._definition, missing, self._rows)
            begun, _ = self._state.load(missing)
            loaded |= begun
        for number, users in dirty.items():
            if number not in missing:
                self._write_again(loaded[number], users)
        self._archive_again(loaded.values())
        self._owned |= loaded

    def _measure_backlog(self) -> None:
        pipeline = self._client.pipeline(transaction=False)
        for number in self._leases.fences:
            pipeline.xlen(self._keys.partition(number).feedback)
            pipeline.xlen(self._keys.partition(number).decisions)
        self._metrics.backlog.set(sum(pipeline.execute()))

    def _write_again(self, partition: Partition, users: list[str]) -> None:
        """Rows of the last commit, whose owner may have died before it wrote them."""
        if not users:
            return
        stored = self._client.mget([self._keys.partition(partition.number).sums(user) for user in users])
        pipeline = self._client.pipeline(transaction=False)
        for user, data in zip(users, stored, strict=True):
            if data is not None:
                self._rows.write(pipeline, user, UserSums(self._definition, data), partition.version)
        pipeline.execute()

    def _archive_again(self, loaded: Collection[Partition]) -> None:
        """Entries that were folded, but whose owner may have died before they were in Parquet."""
        streams = [
            (stream, last, partition)
            for partition in loaded
            for stream, last in (
                (self._keys.partition(partition.number).feedback, partition.feedback),
                (self._keys.partition(partition.number).decisions, partition.decisions),
            )
            if last != BEGINNING
        ]
        pipeline = self._client.pipeline(transaction=False)
        for stream, _, _ in streams:
            pipeline.xlen(stream)
        for (stream, last, partition), waiting in zip(streams, pipeline.execute(), strict=True):
            if waiting:
                for chunk in stream_entries(self._client, stream, last):
                    entries = [entry_of(stream, entry_id.decode(), fields, self._validator) for entry_id, fields in chunk]
                    self._archiver.add(self._as_counted(partition, entries), partition.fence)
                    self._archiver.put_away_if_due()

    def _as_counted(self, partition: Partition, entries: list[Entry]) -> list[Entry]:
        """Entries that were folded; the seen ids lack an entry that its user had no room for."""
        keys = [entry.key for entry in entries if entry.key]
        pipeline = self._client.pipeline(transaction=False)
        answers = self._state.seen(pipeline, partition, keys) if keys else 0
        known = {key for reply in pipeline.execute()[:answers] for key, seen in zip(keys, reply, strict=True) if seen}
        rejected = Rejected("not counted: its user had too many clusters")
        return [
            Entry(entry.stream, entry.id, rejected, entry.record) if entry.key and entry.key not in known else entry for entry in entries
        ]

    def read(self, *, block: bool) -> list[Work]:
        """Read new entries of the owned partitions; waits a quarter of a second for the first."""
        if not self._owned:
            time.sleep(_BLOCK_MILLISECONDS / 1000.0 if block else 0.0)
            return []
        streams: dict[Any, Any] = {}
        for partition in self._owned.values():
            streams[self._keys.partition(partition.number).feedback] = partition.feedback
            streams[self._keys.partition(partition.number).decisions] = partition.decisions
        replies: Any = self._client.xread(streams, count=self._per_stream, block=_BLOCK_MILLISECONDS if block else None)
        works: dict[int, Work] = {}
        for key, entries in replies:
            stream = key.decode()
            number, kind, _ = parse(stream)
            work = works.setdefault(number, Work(partition=self._owned[number]))
            work.entries += [entry_of(stream, entry_id.decode(), fields, self._validator) for entry_id, fields in entries]
            last = entries[-1][0].decode()
            work.feedback, work.decisions = (last, work.decisions) if kind == "feedback" else (work.feedback, last)
        self._per_stream = max(_ENTRIES_PER_STEP // max(len(replies), 1), _LEAST_PER_STREAM)
        return list(works.values())

    def fold(self, works: list[Work]) -> None:
        """Add the entries to the sums of their users, in memory. One round trip reads the known ids and the sums."""
        pipeline = self._client.pipeline(transaction=False)
        asked = []
        for work in works:
            keys = list(dict.fromkeys([entry.key for entry in work.entries if entry.key]))
            users = list(dict.fromkeys([entry.content.user_id for entry in work.entries if not isinstance(entry.content, Rejected)]))
            answers = self._state.seen(pipeline, work.partition, keys) if keys else 0
            if users:
                pipeline.mget([self._keys.partition(work.partition.number).sums(user) for user in users])
            asked.append((keys, users, answers))
        replies = iter(pipeline.execute())
        for work, (keys, users, answers) in zip(works, asked, strict=True):
            for _ in range(answers):
                work.known.update([key for key, seen in zip(keys, next(replies), strict=True) if seen])
            if users:
                work.sums = {user: UserSums(self._definition, data) for user, data in zip(users, next(replies), strict=True)}
            self._metrics.duplicates.inc(work.fold(self._codes))

    def commit(self, works: list[Work]) -> None:
        """Commit, then overwrite the rows of those that were taken; a partition whose commit is refused is another's now."""
        pipeline = self._client.pipeline(transaction=False)
        for work in works:
            change = Commit(
                feedback=work.feedback or work.partition.feedback,
                decisions=work.decisions or work.partition.decisions,
                ids=work.keys,
                dead=work.dead,
                sums={user: work.sums[user].to_bytes() for user in work.changed},
            )
            self._state.commit(pipeline, work.partition, change, arrival(work.entries[-1].id))
        rows = self._client.pipeline(transaction=False)
        for work, taken in zip(works, pipeline.execute(), strict=True):
            partition = work.partition
            if not taken:
                self._owned.pop(partition.number, None)
                self._leases.give_back([partition.number])
                continue
            partition.commits += 1
            partition.feedback, partition.decisions = work.feedback or partition.feedback, work.decisions or partition.decisions
            for _, entries in groupby(work.entries, key=_stream_of):
                self._archiver.add(list(entries), partition.fence)
            self._metrics.dead_letters.inc(len(work.dead))
            for user in work.changed:
                self._rows.write(rows, user, work.sums[user], partition.version)
        rows.execute()


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """A step makes many objects and no cycles: the collector would walk them again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
