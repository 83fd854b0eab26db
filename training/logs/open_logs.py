"""The one door to the logs: files are taken, read another way, or put aside, and every step takes and refuses the same."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq

from bandit.errors import EmptyLogError, InvalidTableError
from bandit.ids import MAX_ID_BYTES
from bandit.rewards.feedback import FUTURE_TOLERANCE
from bandit.settings.load import Settings
from feature_repo import names
from training.logs.columns import CONTROL_PATTERN, IDS, plain_type
from training.logs.engine import epoch_us
from training.logs.files import below, engine_path, quarantine
from training.logs.reader import Reading, check_schema, good_rows
from training.logs.rejected import RejectedRows
from training.logs.schemas import DECISIONS, FEEDBACK
from training.logs.tables import CHECKED, first_line, open_parquet, read_own
from training.logs.writing import storage_errors

LOGS = {"feedback": FEEDBACK, "decisions": DECISIONS}


@ibis.udf.scalar.builtin  # type: ignore[untyped-decorator]
def strlen(value: dt.string) -> dt.int64:
    """Length in bytes, by the engine's own function."""


@dataclass(slots=True, kw_only=True)
class Part:
    """One file of a log. `clean`: where its good rows are, in exactly our types: the file itself, or a copy; `bad`: its other rows."""

    file: Path
    rows: int
    clean: Path
    native: bool
    checked: bool
    bad: int = 0


@dataclass(slots=True, kw_only=True)
class Log:
    """A log as one step reads it.

    rejected: rows that cannot be used, by reason. quarantined: files that are none of the log, by name, with the reason.
    """

    schema: pa.Schema
    parts: list[Part] = field(default_factory=list)
    rejected: Mapping[str, int] = field(default_factory=dict)
    quarantined: dict[str, str] = field(default_factory=dict)

    def files(self) -> list[Path]:
        """Where the good rows are."""
        return [part.clean for part in self.parts]

    def read(self, connection: ibis.BaseBackend) -> ir.Table:
        """The good rows, each as often as it is in the log."""
        return read_engine(connection, self.files()).select(self.schema.names) if self.parts else ibis.memtable(self.schema.empty_table())


@contextmanager
def open_log(
    settings: Settings,
    name: str,
    *,
    now: int | None,
    folder: Path | None = None,
    only: Callable[[Path], bool] = lambda file: True,
    rows: int = 0,
    required: bool = True,
    tolerate: bool = True,
) -> Iterator[Log]:
    """The feedback or decision log, with everything put aside that no step can use. It can be read inside the block.

    Args:
        settings: where the log is, its actions, how many bad rows are too many.
        name: `feedback` or `decisions`.
        now: UTC microseconds, to judge times by; None: no time is in the future.
        folder: the part of the log below this folder only.
        only: which files to read.
        rows: of the log, that were read before: a share of bad rows is one of all rows.
        required: whether a log without rows is an error.
        tolerate: whether too many bad rows are an error.

    Raises: EmptyLogError, TooManyBadRowsError, StorageError; InvalidTableError for a page that turns out to be damaged inside the block.
    """
    folder = folder or settings.data_path / name
    log = Log(schema=LOGS[name])
    reading = Reading(schema=log.schema, now=now, actions=settings.reward.scheme().action_types)
    rejected = RejectedRows(source=str(folder))
    with storage_errors(folder):
        listed = below(folder)
        files = [file for file in listed if only(file)]
        log.parts = _opened(settings, files, reading, log)
        if required and len(files) == len(listed) and not sum(part.rows for part in log.parts):
            for file, reason in log.quarantined.items():  # all that there was
                raise InvalidTableError(file, f"{reason}; it is in data/quarantine now")
            raise EmptyLogError(f"{name.removesuffix('s')} log", str(folder))
        with tempfile.TemporaryDirectory(prefix="query-rewards-") as scratch:
            for part in _suspects(log.parts, reading):
                _clean(settings, part, Path(scratch), reading, rejected, log)
            rejected.rows = rows + sum(part.rows for part in log.parts)
            log.rejected = rejected.settle(settings, tolerate=tolerate)
            try:
                yield log
            except duckdb.Error as error:
                raise _explained(settings, log, reading, error) from error


def _opened(settings: Settings, files: Sequence[Path], reading: Reading, log: Log) -> list[Part]:
    parts = []
    for file in files:
        try:
            with open_parquet(file) as source:
                check_schema(file, source, reading)
                parts.append(
                    Part(
                        file=file,
                        rows=source.metadata.num_rows,
                        clean=file,
                        native=_native(source, reading.schema) and not ("\\" in str(file) and engine_path(file) != str(file)),
                        checked=CHECKED in (source.schema_arrow.metadata or {}),
                    )
                )
        except InvalidTableError as error:
            log.quarantined |= quarantine(settings, file, error.problem if error.column is None else f"{error.column}: {error.problem}")
    return parts


def _native(source: pq.ParquetFile, schema: pa.Schema) -> bool:
    """Whether the engine reads these types as ours: integers as ids, nanoseconds and the like go through a copy."""
    for field_ in schema:
        kind = plain_type(source.schema_arrow.field(field_.name).type)
        text = pa.types.is_string(field_.type) and any(kind == other for other in (pa.large_string(), pa.string_view()))
        time = pa.types.is_timestamp(field_.type) and pa.types.is_timestamp(kind) and kind.unit == "us" and kind.tz is not None
        if not (kind.equals(field_.type) or text or time):
            return False
    return True


def _suspects(parts: Sequence[Part], reading: Reading) -> list[Part]:
    """Parts that may hold bad rows or must be read another way: one cheap aggregate when all is well."""
    suspects = [part for part in parts if not part.native]
    for checked in (True, False):
        alike = [part for part in parts if part.native and part.checked is checked]
        if alike and _suspicious([part.file for part in alike], reading, ids=not checked):
            suspects += [part for part in alike if len(alike) == 1 or _suspicious([part.file], reading, ids=not checked)]
    return suspects


def _suspicious(files: Sequence[Path], reading: Reading, *, ids: bool) -> bool:
    connection = ibis.duckdb.connect()
    connection.raw_sql("SET enable_progress_bar = false")
    try:
        table = read_engine(connection, files)
        wrong: list[ir.BooleanColumn] = []
        for column in reading.schema:
            values = table[column.name]
            if pa.types.is_timestamp(column.type):
                at = epoch_us(values)
                wrong += [values.isnull(), at <= 0] + ([at > reading.now + FUTURE_TOLERANCE] if reading.now is not None else [])
            elif column.name == "action" and reading.actions is not None:
                wrong += [values.isnull(), values.notin(list(reading.actions))]
            elif column.name in IDS and ids:
                wrong += [values.isnull(), strlen(values) == 0, strlen(values) > MAX_ID_BYTES, values.re_search(CONTROL_PATTERN)]
        return bool(table.aggregate(bad=ibis.or_(*wrong).sum()).to_pyarrow()["bad"][0].as_py())
    except duckdb.Error:  # a page that is damaged, or text that is not UTF-8: the file is looked at row by row
        return True
    finally:
        connection.disconnect()


def _clean(settings: Settings, part: Part, scratch: Path, reading: Reading, rejected: RejectedRows, log: Log) -> None:
    """Copy the good rows when some are bad, or when the engine would read them otherwise; a damaged file goes."""
    copy, before = scratch / f"{len(list(scratch.iterdir()))}.parquet", rejected.reasons.total()
    try:
        with pq.ParquetWriter(copy, reading.schema, compression="lz4") as writer:
            for batch in good_rows(part.file, reading, rejected):
                writer.write_batch(batch)
    except InvalidTableError as error:
        log.quarantined |= quarantine(settings, part.file, error.problem)
        log.parts.remove(part)
        return
    part.bad = rejected.reasons.total() - before
    if part.bad or not part.native:
        part.clean = copy


def _explained(settings: Settings, log: Log, reading: Reading, error: duckdb.Error) -> InvalidTableError:
    """The file whose pages the engine could not read, put aside: the next run does without it."""
    for part in log.parts:
        try:
            for _ in good_rows(part.file, reading, RejectedRows(source="")):
                pass
        except InvalidTableError as damaged:
            quarantine(settings, part.file, damaged.problem)
            return InvalidTableError(str(part.file), f"{damaged.problem}; it is in data/quarantine now, run the step again")
    return InvalidTableError(", ".join(sorted({str(part.file.parent) for part in log.parts})), f"cannot be read: {first_line(error)}")


def read_engine(connection: ibis.BaseBackend, files: Sequence[Path]) -> ir.Table:
    """Files of exactly these names, with exactly their own columns."""
    return connection.read_parquet([engine_path(file) for file in files], hive_partitioning=False, union_by_name=len(files) > 1)


def read_snapshots(settings: Settings, connection: ibis.BaseBackend) -> ir.Table | None:
    """Every snapshot of `cluster_rewards`; None when there is none. A damaged one is put aside: its users are folded again."""
    files = []
    for file in below(settings.feature_repo_path / names.CLUSTER_REWARDS_PATH):
        try:
            read_own(file, columns=[names.AS_OF])
            files.append(file)
        except InvalidTableError as error:
            quarantine(settings, file, error.problem)
    return read_engine(connection, files) if files else None


def put_aside(*logs: Log) -> dict[str, Any]:
    """What a step left out of its logs, as its result says it."""
    rejected, quarantined = Counter[str](), dict[str, str]()
    for log in logs:
        rejected.update(log.rejected)
        quarantined |= log.quarantined
    return {"rejected": dict(rejected), "quarantined": quarantined}
