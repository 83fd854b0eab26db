"""Decisions: from Redis' streams to the Parquet log. Moved first, trimmed afterwards, so that a crash repeats rows but loses none."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pyarrow as pa
import redis

from bandit.errors import InvalidValueError
from bandit.model import sha256
from bandit.records import Decision
from bandit.settings import Settings
from feature_repo import names
from training.connection import connect, translated
from training.tables import DECISIONS, write_table

_CALENDAR_END = 253_402_300_800_000_000  # the year 10000
_READ_AT_ONCE = 1000
_ROWS_PER_FILE = 50_000
_DEAD_LETTERS = pa.schema([("stream", pa.string()), ("entry_id", pa.string()), ("record", pa.binary()), ("reason", pa.string())])
_decoder = msgspec.msgpack.Decoder(Decision)


def move_decisions(settings: Settings) -> int:
    """Move every logged decision to `decisions/`, in files of bounded size; returns how many.

    A file is on disk before its entries are trimmed. A run that dies in between leaves entries that the next run writes again: the
    same decision_id twice, which counts once everywhere.

    Raises: DependencyAwayError.
    """
    client = connect(settings.redis_url)
    moved = 0
    batch: list[Decision] = []
    positions: dict[str, str] = {}
    with translated(settings.redis_url):
        for stream, entry_id, record in _entries(client):
            try:
                batch.append(_decoded(record))
            except (msgspec.MsgspecError, InvalidValueError) as error:
                _bury(settings.data_path, stream, entry_id, record, str(error))
            positions[stream] = entry_id
            if len(batch) >= _ROWS_PER_FILE:
                moved += _write_and_trim(client, settings.data_path, batch, positions)
                batch, positions = [], {}
        return moved + _write_and_trim(client, settings.data_path, batch, positions)


def _decoded(record: bytes) -> Decision:
    """A decision that the log can hold: one that is not must not stop those behind it."""
    decision = _decoder.decode(record)
    n = len(decision.cluster_ids)
    sizes = {
        "features": len(decision.features) % (4 * n) if n else 1,
        "scores": len(decision.scores) - n,
        "quotas": len(decision.quotas) - n,
        "inputs": len(decision.inputs) - 64 * (n + 1) if decision.inputs else 0,
    }
    for name, excess in sizes.items():
        if excess:
            raise InvalidValueError(name, expected=f"as many rows as there are candidates, {n}, and one at least", received=f"{excess:+d}")
    if not 0 < decision.k < 2**31:
        raise InvalidValueError("k", expected="a number of queries", received=decision.k)
    if not 0 < decision.decided_at < _CALENDAR_END:
        raise InvalidValueError("decided_at", expected="UTC microseconds", received=decision.decided_at)
    return decision


def _entries(client: redis.Redis) -> Iterator[tuple[str, str, bytes]]:
    for partition in range(names.PARTITIONS):
        stream, start = names.DECISIONS_KEY % partition, "-"
        while True:
            entries = client.xrange(stream, min=start, count=_READ_AT_ONCE)
            for entry_id, fields in entries:
                yield stream, entry_id.decode(), fields.get(names.RECORD_FIELD.encode(), b"")
            if len(entries) < _READ_AT_ONCE:
                break
            start = "(" + entries[-1][0].decode()


def _write_and_trim(client: redis.Redis, data: Path, batch: list[Decision], positions: dict[str, str]) -> int:
    if batch:
        batch.sort(key=lambda decision: decision.decision_id)
        moment = datetime.fromtimestamp(batch[0].decided_at / 1e6, UTC)
        # Named by what it holds: after a crash in the middle of trimming, the rest must not overwrite the file that holds the whole.
        digest = sha256("\0".join(decision.decision_id for decision in batch).encode())[:16]
        write_table(decision_table(batch), data / "decisions" / f"{moment:%Y%m%dT%H%M%S}-{digest}.parquet")
    pipeline = client.pipeline(transaction=False)
    for stream, entry_id in positions.items():
        milliseconds, sequence = entry_id.split("-")
        pipeline.xtrim(stream, minid=f"{milliseconds}-{int(sequence) + 1}", approximate=False)
    pipeline.execute()
    return len(batch)


def decision_table(decisions: list[Decision]) -> pa.Table:
    """Decisions as rows of the Parquet log."""
    columns = {
        name: [getattr(decision, name) for decision in decisions]
        for name in DECISIONS.names
        if name not in {"features", "queries", "context", "inputs"}
    }
    columns["features"] = [decision.feature_matrix().ravel() for decision in decisions]
    columns["inputs"] = [decision.input_matrix().ravel() for decision in decisions]
    columns["queries"] = [[msgspec.to_builtins(query) for query in decision.queries] for decision in decisions]
    columns["context"] = [list(decision.context.items()) for decision in decisions]
    return pa.table([pa.array(columns[field.name], field.type) for field in DECISIONS], schema=DECISIONS)


def _bury(data: Path, stream: str, entry_id: str, record: bytes, reason: str) -> None:
    table = pa.table([[stream], [entry_id], [record], [reason]], schema=_DEAD_LETTERS)
    write_table(table, data / "dead_letters" / f"decisions-{stream.replace(':', '-')}-{entry_id}.parquet")
