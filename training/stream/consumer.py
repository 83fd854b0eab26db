"""The consumer: feedback and decisions of the owned partitions, folded into each user's sums, exactly once.

One step: read new entries; look up which are known, and the sums of the users they belong to; add; commit each partition in one Lua call
(`training/stream/state.py`); overwrite the users' rows in Feast's online store. Any failure in between leaves a state from which the same
step is simply done again: nothing that this process holds in memory counts.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import msgspec
import redis

from bandit.intake import DECODE_ERRORS
from bandit.lineage import Reclustering
from bandit.records import Decision, Feedback
from bandit.settings import Settings
from bandit.sums import DRAW, MAX_CLUSTERS, Folding, Term, UserSums
from feature_repo import names
from feature_repo.partitions import partition
from training.archive import arrival, stream_entries
from training.decisions import read_decision
from training.stream.archiver import Archiver, Entry
from training.stream.leases import Leases
from training.stream.metrics import StreamMetrics
from training.stream.rebuild import rebuild
from training.stream.rows import RewardRows
from training.stream.state import Commit, Partition, StreamState, decision_key, event_key

log = logging.getLogger(__name__)

_BLOCK_MILLISECONDS = 250
_AT_ONCE = 4000  # entries of one step
_LEAST_PER_STREAM = 16
_RETRY_SECONDS = 0.2
_DEAD_RECORD_KEPT = 1024  # bytes in Redis; Parquet keeps more
_FEEDBACK_STREAMS = [names.FEEDBACK_KEY % number for number in range(names.PARTITIONS)]
_DECISION_STREAMS = [names.DECISIONS_KEY % number for number in range(names.PARTITIONS)]
_PLACES = {
    key.encode(): (number, is_feedback)
    for is_feedback, keys in ((True, _FEEDBACK_STREAMS), (False, _DECISION_STREAMS))
    for number, key in enumerate(keys)
}
_RECORD, _LINEAGE = names.RECORD_FIELD.encode(), names.LINEAGE_FIELD.encode()
_ELSEWHERE = "user_id: its events belong to another partition"
_reclustering = msgspec.msgpack.Decoder(Reclustering)


@dataclass(slots=True, kw_only=True)
class _Work:
    """New entries of one partition on their way to a commit."""

    partition: Partition
    entries: list[Entry] = field(default_factory=list)
    feedback: str = ""
    decisions: str = ""
    known: dict[bytes, bool] = field(default_factory=dict)
    sums: dict[str, UserSums] = field(default_factory=dict)
    ids: dict[bytes, None] = field(default_factory=dict)
    changed: dict[str, None] = field(default_factory=dict)  # users, in the order of their first entry
    dead: list[tuple[bytes, str]] = field(default_factory=list)


class Consumer:
    """Folds what comes in. One per process; processes share the partitions."""

    def __init__(self, settings: Settings, client: redis.Redis, rows: RewardRows, metrics: StreamMetrics | None = None) -> None:
        """client: without retries of its own, with a socket timeout above a quarter of a second."""
        self._settings, self._client, self._rows = settings, client, rows
        self._metrics = metrics or StreamMetrics()
        self._folding = Folding(scheme=settings.reward.scheme(), half_lives=settings.reward.half_lives())
        self._codes, self._intake = self._folding.codes, settings.intake()
        self._state = StreamState(client, window=settings.stream.window, folding=self._folding.fingerprint)
        self._leases = Leases(client, uuid.uuid4().hex, seconds=settings.stream.lease_seconds)
        self._archiver = Archiver(settings.data_path, client, seconds=settings.stream.archive_seconds)
        self._owned: dict[int, Partition] = {}
        self._per_stream = _LEAST_PER_STREAM
        self._prepared = False

    @property
    def partitions(self) -> int:
        """How many partitions are owned now."""
        return len(self._owned)

    def run(self, stop: Callable[[], bool]) -> None:
        """Fold until `stop` says so, then leave everything in order. A Redis that is away, or a full disk, is waited for."""
        while not stop():
            try:
                self.step()
            except (redis.RedisError, OSError) as error:
                log.warning("the stream waits for %s: %s", "Redis" if isinstance(error, redis.RedisError) else "the disk", error)
                self._metrics.failures.inc()
                self._owned.clear()
                self._leases.forget()
                self._prepared = False
                time.sleep(_RETRY_SECONDS)
        self.close()

    def close(self) -> None:
        """Write what waits for Parquet, and let others take the partitions."""
        try:
            self._archiver.close()
        except OSError as error:
            log.error("the logs cannot be written; the next owner will: %s", error)  # noqa: TRY400 -- one line
        try:
            self._leases.leave()
        except redis.RedisError as error:
            log.warning("the leases run out by themselves: %s", error)

    def step(self, *, block: bool = True) -> int:
        """Fold what has come in; returns the number of entries. Waits a quarter of a second for the first.

        Raises: redis.RedisError; what was not committed is read again.
        """
        if not self._prepared:  # a Redis that was started anew knows no scripts
            self._state.prepare()
            self._rows.prepare()
            self._prepared = True
        if self._leases.due:
            self._balance()
        if self._archiver.full:
            time.sleep(_RETRY_SECONDS if block else 0.0)
            self._archiver.put_away_if_due()
            return 0
        started = time.monotonic()
        works = self._read(block=block)
        if works:
            self._look_up(works)
            for work in works:
                self._fold(work)
            self._commit(works)
        count = sum(len(work.entries) for work in works)
        oldest = min((arrival(work.entries[0][1]) for work in works), default=None)
        lag = time.time() - oldest / 1e6 if oldest is not None else 0.0
        self._metrics.observe(count, time.monotonic() - started, max(lag, 0.0), len(self._owned))
        self._archiver.put_away_if_due()
        return count

    def _balance(self) -> None:
        taken = self._leases.balance()
        self._owned = {number: held for number, held in self._owned.items() if self._leases.fences.get(number) == held.fence}
        self._measure()
        if not taken:
            return
        fences = {number: self._leases.fences[number] for number in taken}
        found, dirty = self._state.load(fences)
        stale = self._state.waited_too_long(found)
        missing = {number: fence for number, fence in fences.items() if number not in found or number in stale}
        if missing:
            with self._leases.kept():
                self._archiver.flush()  # what this process folded and Redis has lost is in the logs before they are read
                rebuild(self._settings, self._client, self._state, self._folding, missing, self._rows)
            begun, _ = self._state.load(missing)
            found |= begun
        for number, users in dirty.items():
            if number not in missing:
                self._write_again(found[number], users)
        for held in found.values():
            self._archive_again(held)
        self._owned |= found

    def _measure(self) -> None:
        pipeline = self._client.pipeline(transaction=False)
        for number in self._leases.fences:
            pipeline.xlen(_FEEDBACK_STREAMS[number])
            pipeline.xlen(_DECISION_STREAMS[number])
        self._metrics.backlog.set(sum(pipeline.execute()))

    def _write_again(self, held: Partition, users: list[str]) -> None:
        """Rows of the last commit, whose owner may have died before it wrote them."""
        if not users:
            return
        stored = self._client.mget([names.SUMS_KEY % (held.number, user) for user in users])
        pipeline = self._client.pipeline(transaction=False)
        for user, data in zip(users, stored, strict=True):
            if data is not None:
                self._rows.write(pipeline, user, UserSums(self._folding, data), held.version)
        pipeline.execute()

    def _archive_again(self, held: Partition) -> None:
        """Entries that were folded, but whose owner may have died before they were in Parquet."""
        for stream, last in ((_FEEDBACK_STREAMS[held.number], held.feedback), (_DECISION_STREAMS[held.number], held.decisions)):
            if last != "0-0":
                entries = (self._entry(stream, entry_id, fields) for entry_id, fields in stream_entries(self._client, stream, last))
                while some := list(islice(entries, _AT_ONCE)):
                    for entry in self._counted(held, some):
                        self._archiver.add(entry)

    def _counted(self, held: Partition, entries: list[Entry]) -> Iterator[Entry]:
        """Entries that were folded; one that was refused for its user's many clusters is known by its id, which was not kept."""
        ids = [key for _, _, read, _ in entries for key in _keys(read)]
        pipeline = self._client.pipeline(transaction=False)
        answers = self._state.seen(pipeline, held, ids) if ids else 0
        known = {key for reply in pipeline.execute()[:answers] for key, seen in zip(ids, reply, strict=True) if seen}
        for stream, entry_id, read, record in entries:
            missing = any(key not in known for key in _keys(read))
            yield stream, entry_id, "not counted: its user had too many clusters" if missing else read, record

    def _read(self, *, block: bool) -> list[_Work]:
        if not self._owned:
            time.sleep(_BLOCK_MILLISECONDS / 1000.0 if block else 0.0)
            return []
        streams: dict[Any, Any] = {}
        for held in self._owned.values():
            streams[_FEEDBACK_STREAMS[held.number]] = held.feedback
            streams[_DECISION_STREAMS[held.number]] = held.decisions
        replies: Any = self._client.xread(streams, count=self._per_stream, block=_BLOCK_MILLISECONDS if block else None)
        works: dict[int, _Work] = {}
        for key, entries in replies:
            number, is_feedback = _PLACES[key]
            work = works.setdefault(number, _Work(partition=self._owned[number]))
            stream = key.decode()
            work.entries += [self._entry(stream, entry_id.decode(), fields) for entry_id, fields in entries]
            last = entries[-1][0].decode()
            work.feedback, work.decisions = (last, work.decisions) if is_feedback else (work.feedback, last)
        self._per_stream = max(_AT_ONCE // max(len(replies), 1), _LEAST_PER_STREAM)
        return list(works.values())

    def _entry(self, stream: str, entry_id: str, fields: dict[bytes, bytes]) -> Entry:
        record = fields.get(_RECORD, b"")
        arrived = arrival(entry_id)
        if stream.endswith("s"):  # decisions
            decision = read_decision(record, arrived)
            if isinstance(decision, Decision) and stream != _DECISION_STREAMS[partition(decision.user_id)]:
                return stream, entry_id, _ELSEWHERE, record
            return stream, entry_id, decision, record
        if _LINEAGE in fields:
            try:
                change = _reclustering.decode(fields[_LINEAGE])
            except DECODE_ERRORS as error:
                return stream, entry_id, f"not a reclustering: {error}", fields[_LINEAGE]
            return stream, entry_id, change if stream == _FEEDBACK_STREAMS[partition(change.user_id)] else _ELSEWHERE, record
        event = self._intake.read(record, arrived)
        if isinstance(event, Feedback) and stream != _FEEDBACK_STREAMS[partition(event.user_id)]:
            return stream, entry_id, _ELSEWHERE, record
        return stream, entry_id, event, record

    def _look_up(self, works: list[_Work]) -> None:
        """One round trip: which ids are known, and the sums of every user."""
        pipeline = self._client.pipeline(transaction=False)
        asked = []
        for work in works:
            ids = list(dict.fromkeys(key for _, _, held, _ in work.entries for key in _keys(held)))
            users = list(dict.fromkeys(held.user_id for _, _, held, _ in work.entries if not isinstance(held, str)))
            answers = self._state.seen(pipeline, work.partition, ids) if ids else 0
            if users:
                pipeline.mget([names.SUMS_KEY % (work.partition.number, user) for user in users])
            asked.append((ids, users, answers))
        replies = iter(pipeline.execute())
        for work, (ids, users, answers) in zip(works, asked, strict=True):
            for _ in range(answers):
                work.known.update({key: True for key, seen in zip(ids, next(replies), strict=True) if seen})
            if users:
                work.sums = {user: UserSums(self._folding, data) for user, data in zip(users, next(replies), strict=True)}

    def _fold(self, work: _Work) -> None:
        terms: dict[str, list[Term]] = {}
        clusters: dict[str, set[str]] = {}
        for place, (stream, entry_id, held, record) in enumerate(work.entries):
            if isinstance(held, str):
                work.dead.append((record[:_DEAD_RECORD_KEPT], held))
                continue
            user = held.user_id
            if isinstance(held, Reclustering):  # in its place among the events: those before it follow it
                if terms.get(user):
                    work.sums[user].add(terms.pop(user))
                work.sums[user].recluster(held)
                work.changed[user] = None
                continue
            (key,) = _keys(held)
            if key in work.known or key in work.ids:
                self._metrics.duplicates.inc()
                continue
            news = _terms(held, self._codes)
            room = clusters.setdefault(user, set(work.sums[user].cluster_ids))
            room.update(term.cluster_id for term in news)
            if len(room) > MAX_CLUSTERS:
                room.difference_update(term.cluster_id for term in news)
                reason = f"cluster_id: user {user!r} has {MAX_CLUSTERS} clusters already"
                work.entries[place] = stream, entry_id, reason, record
                work.dead.append((record[:_DEAD_RECORD_KEPT], reason))
                continue
            work.ids[key] = None
            work.changed[user] = None
            terms.setdefault(user, []).extend(news)
        for user, pending in terms.items():
            work.sums[user].add(pending)

    def _commit(self, works: list[_Work]) -> None:
        """Commit, then overwrite the rows of those that were taken; a partition whose commit is refused is another's now."""
        pipeline = self._client.pipeline(transaction=False)
        for work in works:
            change = Commit(
                feedback=work.feedback or work.partition.feedback,
                decisions=work.decisions or work.partition.decisions,
                ids=work.ids,
                dead=work.dead,
                sums={user: work.sums[user].to_bytes() for user in work.changed},
            )
            self._state.commit(pipeline, work.partition, change, arrival(work.entries[-1][1]))
        rows = self._client.pipeline(transaction=False)
        for work, taken in zip(works, pipeline.execute(), strict=True):
            held = work.partition
            if not taken:
                self._owned.pop(held.number, None)
                self._leases.give_back([held.number])
                continue
            held.commits += 1
            held.feedback, held.decisions = work.feedback or held.feedback, work.decisions or held.decisions
            for entry in work.entries:
                self._archiver.add(entry)
            self._metrics.dead_letters.inc(len(work.dead))
            for user in work.changed:
                self._rows.write(rows, user, work.sums[user], held.version)
        rows.execute()


def _keys(held: Decision | Feedback | Reclustering | str) -> Iterator[bytes]:
    """What tells a repetition: nothing for those that may be repeated, or count for nothing."""
    if isinstance(held, Feedback):
        yield event_key(held.event_id)
    elif isinstance(held, Decision):
        yield decision_key(held.decision_id)


def _terms(held: Feedback | Decision, codes: dict[str, int]) -> list[Term]:
    if isinstance(held, Feedback):
        return [Term(held.cluster_id, codes[held.action], held.occurred_at)]
    return [Term(query.cluster_id, DRAW, held.decided_at) for query in held.queries]
