"""Reading Parquet files that others wrote: one clear error that names file, column and row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bandit.errors import EmptyLogError, InvalidTableError
from bandit.rewards.feedback import FUTURE_TOLERANCE
from training.logs.writing import whole_file


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


def write_table(table: pa.Table, file: Path) -> None:
    """Write a Parquet file whole or not at all. Raises: StorageError."""
    with whole_file(file) as partial:
        pq.write_table(table, partial, compression="zstd")


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
