"""Archive: entries of Redis' streams to the Parquet logs. Written first, trimmed afterwards: a crash repeats rows but loses none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pyarrow as pa
import redis

from bandit.model.linear_model import sha256
from bandit.records import Decision, Feedback
from bandit.rewards.feedback import DECODE_ERRORS, FUTURE_TOLERANCE, FeedbackValidator, Rejected
from bandit.rewards.lineage import Reclustering
from bandit.settings.load import Settings
from feature_repo import names
from feature_repo.connection import connect, translated
from feature_repo.keys import PARTITIONS, Keys, parse, partition
from training.logs.decisions import decision_table, read_decision
from training.logs.feedback import feedback_table
from training.logs.files import below
from training.logs.open_logs import open_log
from training.logs.schemas import DEAD_LETTERS
from training.logs.tables import read_own, write_table

_ENTRIES_PER_READ = 1000
_ROWS_PER_FILE = 50_000
_RECORD, _LINEAGE = names.RECORD_FIELD.encode(), names.LINEAGE_FIELD.encode()
_reclustering = msgspec.msgpack.Decoder(Reclustering)
_RECORD_KEPT = 64 * 1024  # bytes of a dead record that are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A record that cannot be counted, where it stood, and why."""

    stream: str
    entry_id: str
    record: bytes
    reason: str


@dataclass(slots=True, kw_only=True)
class Batch:
    """Entries that go to Parquet together; `positions` is the last entry of each stream."""

    decisions: list[Decision] = field(default_factory=list)
    feedback: list[Feedback] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    positions: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        """Rows to write."""
        return len(self.decisions) + len(self.feedback) + len(self.dead)

    def add(self, stream: str, entry_id: str, content: Decision | Feedback | Reclustering | Rejected, record: bytes) -> None:
        """Add an entry. `content`: its record, or why it cannot be counted. Lineage has a log of its own."""
        self.positions[stream] = entry_id
        if isinstance(content, Feedback):
            self.feedback.append(content)
        elif isinstance(content, Decision):
            self.decisions.append(content)
        elif isinstance(content, Rejected):
            self.dead.append(DeadLetter(stream=stream, entry_id=entry_id, record=record[:_RECORD_KEPT], reason=content.reason))

    def extend(self, later: Batch) -> None:
        """Take the entries of a batch that came after this one."""
        self.decisions += later.decisions
        self.feedback += later.feedback
        self.dead += later.dead
        self.positions |= later.positions

    def write(self, data: Path) -> None:
        """Write the rows, in a folder for each day of arrival. A file's name is a hash of its ids, so that no file replaces another."""
        arrived = max((arrival(position) for position in self.positions.values()), default=0)
        for log, ids, table in (
            ("decisions", [decision.decision_id for decision in self.decisions], decision_table),
            ("feedback", [event.event_id for event in self.feedback], feedback_table),
            ("dead_letters/stream", [letter.stream + letter.entry_id for letter in self.dead], _dead_letter_table),
        ):
            rows = getattr(self, log.partition("_")[0])
            if rows:
                write_table(table(rows), data / log / _file_name(arrived, ids), checked=True)

    def trim(self, client: redis.Redis) -> None:
        """Remove the written entries from the streams."""
        pipeline = client.pipeline(transaction=False)
        for stream, entry_id in self.positions.items():
            pipeline.xtrim(stream, minid=after(entry_id), approximate=False)
        pipeline.execute()


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """Rows that a move wrote to each log."""

    decisions: int = 0
    feedback: int = 0
    dead_letters: int = 0


def move_logs(settings: Settings) -> Moved:
    """Move every decision and event to the Parquet logs, in files of bounded size.

    With `stream.enabled` the stream does that, and this moves nothing. Without it, this deletes the state of a former stream, which has not
    seen these entries; a stream that starts again rebuilds its state from the logs.

    Raises: DependencyUnavailableError.
    """
    if settings.stream.enabled:
        return Moved()
    client, keys = connect(settings.redis_url), Keys.of(settings.feature_repo_path)
    moved, batch = Moved(), Batch()

    def put_away() -> None:
        nonlocal moved, batch
        batch.write(settings.data_path)
        batch.trim(client)
        moved = Moved(
            decisions=moved.decisions + len(batch.decisions),
            feedback=moved.feedback + len(batch.feedback),
            dead_letters=moved.dead_letters + len(batch.dead),
        )
        batch = Batch()

    validator = settings.feedback_validator()
    with translated(settings.redis_url):
        client.delete(*(keys.partition(number).state for number in range(PARTITIONS)))
        for stream, entry_id, fields in _entries(client, keys):
            batch.add(stream, entry_id, read_entry(stream, entry_id, fields, validator), fields.get(_RECORD, b""))
            if len(batch) >= _ROWS_PER_FILE:
                put_away()
        put_away()
    return moved


def read_entry(
    stream: str, entry_id: str, fields: Mapping[bytes, bytes], validator: FeedbackValidator
) -> Decision | Feedback | Reclustering | Rejected:
    """The record of a decision or feedback stream's entry, or why it cannot be counted."""
    content: Decision | Feedback | Reclustering | Rejected
    number, kind, _ = parse(stream)
    if kind == "decisions":
        content = read_decision(fields.get(_RECORD, b""), arrival(entry_id))
    elif _LINEAGE in fields:
        try:
            content = _reclustering.decode(fields[_LINEAGE])
        except DECODE_ERRORS as error:
            return Rejected(f"not a reclustering: {error}")
    else:
        content = validator.read(fields.get(_RECORD, b""), arrival(entry_id))
    if not isinstance(content, Rejected) and partition(content.user_id) != number:
        return Rejected("user_id: its events belong to another partition")
    return content


def arrival(entry_id: str) -> int:
    """When an entry came to Redis, UTC microseconds: its id begins with that."""
    return int(entry_id.partition("-")[0]) * 1000


def after(entry_id: str) -> str:
    """The least id that is greater."""
    milliseconds, sequence = entry_id.split("-")
    return f"{milliseconds}-{int(sequence) + 1}"


def compact(settings: Settings, *, now: int) -> int:
    """Put the files of each past day into one, every event and decision once; returns the number of files that went.

    The new file is on disk before the old ones are removed: a crash in between leaves rows twice, which count once. A file with bad rows
    stays as it is. Columns that the schema lacks are dropped.
    """
    removed = 0
    today = datetime.fromtimestamp((now - FUTURE_TOLERANCE) / 1e6, UTC).date().isoformat()
    for log_name, key in (("decisions", "decision_id"), ("feedback", "event_id")):
        for day in sorted((settings.data_path / log_name).glob("????-??-??")):
            if day.name >= today or len(below(day)) < 2:
                continue
            with open_log(settings, log_name, now=now, folder=day, required=False, tolerate=False) as log:
                parts = [part for part in log.parts if not part.bad]
                if len(parts) < 2:
                    continue
                table = pa.concat_tables([read_own(part.clean, log.schema) for part in parts])
            table = table.take(_first_of_each(table[key])).sort_by(key)
            files = [part.file for part in parts]
            write_table(table, day / f"day-{sha256(''.join(file.name for file in files).encode())[:16]}.parquet", checked=True, parts=files)
            for file in files:
                file.unlink()
            removed += len(files) - 1
    return removed


def _first_of_each(keys: pa.ChunkedArray) -> pa.Array:
    rows = pa.table({"key": keys, "row": pa.array(range(len(keys)))}).group_by("key").aggregate([("row", "min")])
    return rows["row_min"].combine_chunks()


def _entries(client: redis.Redis, keys: Keys) -> Iterator[tuple[str, str, dict[bytes, bytes]]]:
    for number in range(PARTITIONS):
        for stream in (keys.partition(number).decisions, keys.partition(number).feedback):
            for entries in stream_entries(client, stream):
                for entry_id, fields in entries:
                    yield stream, entry_id.decode(), fields


def stream_entries(client: redis.Redis, stream: str, last: str = "+") -> Iterator[list[tuple[bytes, dict[bytes, bytes]]]]:
    """Entries of a stream from its beginning to `last`, piece by piece."""
    start = "-"
    while True:
        entries = client.xrange(stream, min=start, max=last, count=_ENTRIES_PER_READ)
        if entries:
            yield entries
        if len(entries) < _ENTRIES_PER_READ:
            return
        start = "(" + entries[-1][0].decode()


def _file_name(arrived: int, ids: Sequence[str]) -> str:
    moment = datetime.fromtimestamp(arrived / 1e6, UTC)
    return f"{moment:%Y-%m-%d}/{moment:%H%M%S}-{sha256(chr(0).join(ids).encode())[:16]}.parquet"


def _dead_letter_table(letters: Sequence[DeadLetter]) -> pa.Table:
    return pa.Table.from_pylist([{name: getattr(letter, name) for name in DEAD_LETTERS.names} for letter in letters], DEAD_LETTERS)
