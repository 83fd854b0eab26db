"""Schemas of every Parquet file, and reading files that others wrote: one clear error that names file, column and row."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bandit.errors import EmptyLogError, InvalidTableError
from bandit.intake import FUTURE_TOLERANCE
from feature_repo import names

TIME = pa.timestamp("us", tz="UTC")

EVENTS = "events"  # of a snapshot's user: how many events and draws its sums have counted; not a feature
RECLUSTERINGS = "reclusterings"  # of a snapshot's user: how many its sums have been through; not a feature, absent before there were any

ENGAGEMENTS = pa.schema([("user_id", pa.string()), ("item_id", pa.string()), ("action", pa.string()), ("occurred_at", TIME)])
FEEDBACK = pa.schema(
    [
        ("event_id", pa.string()),
        ("decision_id", pa.string()),
        ("user_id", pa.string()),
        ("cluster_id", pa.string()),
        ("query_id", pa.string()),
        ("item_id", pa.string()),
        ("action", pa.string()),
        ("occurred_at", TIME),
    ]
)
DECISIONS = pa.schema(
    [
        ("decision_id", pa.string()),
        ("user_id", pa.string()),
        ("decided_at", TIME),
        ("policy", pa.string()),
        ("model_version", pa.string()),
        ("k", pa.int32()),
        ("seed", pa.int64()),
        ("feature_version", pa.int32()),
        ("cluster_ids", pa.list_(pa.string())),
        ("features", pa.list_(pa.float32())),  # (clusters x features), row by row
        ("scores", pa.list_(pa.float64())),
        ("quotas", pa.list_(pa.float64())),
        ("caps", pa.list_(pa.float64())),
        (
            "queries",
            pa.list_(pa.struct([("item_id", pa.string()), ("cluster_id", pa.string()), ("propensity", pa.float64())])),
        ),
        ("context", pa.map_(pa.string(), pa.string())),
        ("degraded", pa.bool_()),
        ("inputs", pa.list_(pa.float64())),  # (clusters + 1) x 8, row by row; see bandit/inputs.py
        ("arm", pa.string()),
        ("mode", pa.string()),
    ]
)

DEAD_LETTERS = pa.schema([("stream", pa.string()), ("entry_id", pa.string()), ("record", pa.binary()), ("reason", pa.string())])

_STRINGS, _FLOATS, _INTS = pa.list_(pa.string()), pa.list_(pa.float64()), pa.list_(pa.int64())
SNAPSHOT_TIME = pa.timestamp("us")  # Feast reads naive times as UTC; with a zone, DuckDB would cast them by the machine's own
USER_CLUSTERS = pa.schema(
    [
        (names.JOIN_KEY, pa.string()),
        (names.CLUSTER_IDS, _STRINGS),
        (names.TOPIC_IDS, _INTS),
        (names.TOPIC_HISTORY, _FLOATS),
        (names.ITEM_COUNTS, _INTS),
        (names.ACTION_TYPES, _STRINGS),
        (names.ACTION_COUNTS, _FLOATS),
        (names.IMPORTANCE, _FLOATS),
        (names.LAST_ACTION_AT, _INTS),
        (names.QUERY_ITEMS, _STRINGS),
        (names.QUERY_WEIGHTS, _FLOATS),
        (names.QUERY_OFFSETS, _INTS),
        (names.TIMESTAMP, SNAPSHOT_TIME),
    ]
)
CLUSTER_REWARDS = pa.schema(
    [
        (names.JOIN_KEY, pa.string()),
        (names.AS_OF, pa.int64()),
        (names.CLUSTER_IDS, _STRINGS),
        (names.IMPRESSIONS_SESSION, _FLOATS),
        (names.REWARD_SESSION, _FLOATS),
        (names.IMPRESSIONS_LONG, _FLOATS),
        (names.REWARD_LONG, _FLOATS),
        (names.DRAWS_SESSION, _FLOATS),
        (names.ACTION_TYPES, _STRINGS),
        (names.ACTION_SUMS, _FLOATS),
        (names.LAST_IMPRESSION_AT, _INTS),
        (EVENTS, pa.int64()),
        (RECLUSTERINGS, pa.int64()),
        (names.TIMESTAMP, SNAPSHOT_TIME),
    ]
)

MEMBERS = pa.schema([("user_id", pa.string()), ("cluster_id", pa.string()), ("item_id", pa.string())])
LINEAGE = pa.schema(
    [
        ("user_id", pa.string()),
        ("effective_at", pa.int64()),  # UTC microseconds
        ("from_cluster", pa.string()),
        ("to_cluster", pa.string()),
        ("share", pa.float64()),
    ]
)


def log_files(folder: Path, log: str, schema: pa.Schema) -> list[str]:
    """Parquet files of a log, in name order, each checked against the schema (names and types, from its footer alone).

    Raises: EmptyLogError when there are none or all are empty; InvalidTableError for a file that breaks the schema.
    """
    files = sorted(str(file) for file in folder.rglob("*.parquet"))
    rows = 0
    for file in files:
        footer = _footer(file)
        rows += footer.metadata.num_rows
        _check_schema(file, footer.schema_arrow, schema)
    if not rows:
        raise EmptyLogError(log, str(folder))
    return files


def read_table(file: str | Path, schema: pa.Schema, *, now: int, actions: Sequence[str] | None = None) -> pa.Table:
    """Read a whole file that others wrote, as exactly this schema; extra columns are dropped.

    Args:
        file: Parquet file.
        schema: columns and types to return; other widths of the same kind are cast.
        now: UTC microseconds; times later than that are refused.
        actions: when given, the only values that the column `action` may hold.

    Raises: InvalidTableError.
    """
    file = str(file)
    _check_schema(file, _footer(file).schema_arrow, schema)
    table = pq.read_table(file, columns=schema.names).cast(schema)
    check_values(file, table, now=now, actions=actions)
    return table


def rows_of(file: str | Path) -> int:
    """How many rows a file has, from its footer alone.

    Raises: InvalidTableError.
    """
    return int(_footer(str(file)).metadata.num_rows)


def may_be_null(files: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Those of the columns of which the footers do not say that they hold no null."""
    left = set()
    for file in files:
        footer = _footer(file)
        for group in range(footer.metadata.num_row_groups):
            for place in range(footer.metadata.num_columns):
                chunk = footer.metadata.row_group(group).column(place)
                found = chunk.statistics
                if found is None or not found.has_null_count or found.null_count:
                    left.add(chunk.path_in_schema)
    return [column for column in columns if column in left]


def has_column(file: str, column: str) -> bool:
    """Whether a file has a column that may be left out."""
    return column in _footer(file).schema_arrow.names


def check_values(file: str, table: pa.Table, *, now: int, actions: Sequence[str] | None = None) -> None:
    """Refuse nulls, unknown actions and events in the future, naming the first bad row."""
    for column in table.schema:
        values = table[column.name]
        if values.null_count:
            raise InvalidTableError(file, "null, expected a value", column=column.name, row=_first(pc.is_null(values)))
        if pa.types.is_timestamp(column.type):
            late = pc.greater(values, pa.scalar(now + FUTURE_TOLERANCE, pa.int64()).cast(column.type))
            if pc.any(late).as_py():
                row = _first(late)
                raise InvalidTableError(file, f"{values[row].as_py()} is in the future", column=column.name, row=row)
    if actions is not None and "action" in table.column_names:
        known = pc.is_in(table["action"], pa.array(list(actions), pa.string()))
        if not pc.all(known, min_count=0).as_py():
            row = _first(pc.invert(known))
            problem = f"unknown action {table['action'][row].as_py()!r}, expected one of {list(actions)}"
            raise InvalidTableError(file, problem, column="action", row=row)


@ibis.udf.scalar.builtin(name="hash")  # type: ignore[untyped-decorator]
def _hash(value: dt.string) -> dt.uint64:
    """The engine's own; only equal texts of one query need to be equal."""


def once(events: ir.Table) -> ir.Table:
    """Feedback in which each event_id stands once, with the least of each other column where it came more than once.

    Few events come again. Which ones is asked here and now, of hashes, and only those are grouped: grouping all by their ids would take
    a third of the time of a fold, and most of its memory.
    """
    hashed = events.mutate(hashed=_hash(events.event_id))
    counts = hashed.group_by("hashed").agg(times=hashed.count())
    repeated = counts.filter(counts.times > 1).select("hashed").to_pyarrow()
    if not repeated.num_rows:
        return events
    others = hashed.anti_join(ibis.memtable(repeated), "hashed").select(events.columns)
    again = hashed.semi_join(ibis.memtable(repeated), "hashed")
    least = again.group_by("event_id").agg(**{name: again[name].min() for name in events.columns if name != "event_id"})
    return others.union(least.select(events.columns))


def engine() -> ibis.BaseBackend:
    """A DuckDB of its own, for one step: one thread, so that sums are added in one order and the same log gives the same bytes."""
    connection = ibis.duckdb.connect()
    connection.raw_sql("SET enable_progress_bar = false; SET threads = 1")
    return connection


def write_table(table: pa.Table, file: Path) -> None:
    """Write a Parquet file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    pq.write_table(table, partial, compression="zstd")
    with partial.open("rb") as written:
        os.fsync(written.fileno())
    partial.replace(file)


def _footer(file: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except FileNotFoundError as error:
        raise InvalidTableError(file, "no such file") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise InvalidTableError(file, f"not a readable Parquet file: {error}") from error


def _check_schema(file: str, found: pa.Schema, expected: pa.Schema) -> None:
    for column in expected:
        if column.name not in found.names:
            raise InvalidTableError(file, f"missing, expected {column.type}; the file has {found.names}", column=column.name)
        kind = found.field(column.name).type
        if pa.types.is_timestamp(column.type) and pa.types.is_timestamp(kind):
            if kind.tz is None:
                raise InvalidTableError(file, f"{kind} has no time zone, expected {column.type}", column=column.name)
        elif not _same_kind(kind, column.type):
            raise InvalidTableError(file, f"has type {kind}, expected {column.type}", column=column.name)


def _same_kind(found: pa.DataType, expected: pa.DataType) -> bool:
    if pa.types.is_dictionary(found):
        found = found.value_type
    if pa.types.is_string(expected):
        return bool(pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found))
    if pa.types.is_list(expected):
        lists = pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found)
        return lists and _same_kind(found.value_type, expected.value_type)
    if pa.types.is_floating(expected):
        return bool(pa.types.is_floating(found))
    if pa.types.is_integer(expected):
        return bool(pa.types.is_integer(found))
    return bool(found == expected)


def _first(mask: pa.ChunkedArray) -> int:
    return int(pc.index(mask, True).as_py())
