"""Parquet files of ours: written whole or not at all, read with one clear error that names the file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bandit.errors import InvalidTableError
from training.logs.writing import whole_file

CHECKED = b"query_rewards.checked"  # in a file's metadata: every row passed the rule for identifiers before it was written
_PARTS = b"query_rewards.parts"  # in a file's metadata: the files of its folder that it was joined of


def write_table(table: pa.Table, file: Path, *, checked: bool = False, parts: Sequence[Path] = ()) -> None:
    """Write a Parquet file whole or not at all; with the names, sizes and times of the files of its folder that it joins.

    Raises: StorageError.
    """
    if checked:
        table = table.replace_schema_metadata({CHECKED: b"ids"})
    if parts:
        marks = {part.name: (part.stat().st_size, part.stat().st_mtime_ns) for part in parts}
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), _PARTS: json.dumps(marks).encode()})
    with whole_file(file) as partial:
        pq.write_table(table, partial, compression="zstd")


def parts_of(file: Path) -> Mapping[str, tuple[int, int]]:
    """Sizes and times (nanoseconds) of the files that this one joins, by name; none for others, and for a file that cannot be read."""
    try:
        with open_parquet(file) as source:
            marks = json.loads((source.schema_arrow.metadata or {}).get(_PARTS, b"{}"))
            return {name: (size, changed) for name, (size, changed) in marks.items()}
    except (InvalidTableError, ValueError):
        return {}


def read_own(file: Path, schema: pa.Schema | None = None, *, columns: Sequence[str] | None = None) -> pa.Table:
    """A file that we wrote, whatever its folders are called. Raises: InvalidTableError."""
    with open_parquet(file) as source:
        try:
            table = source.read(columns=list(columns) if columns is not None else None)
            return table if schema is None else table.select(schema.names).cast(schema)
        except (pa.ArrowException, OSError, KeyError) as error:
            raise InvalidTableError(str(file), f"damaged: {first_line(error)}") from error


def open_parquet(file: Path) -> pq.ParquetFile:
    """The file's footer, read. Raises: InvalidTableError."""
    try:
        return pq.ParquetFile(file, coerce_int96_timestamp_unit="us")
    except FileNotFoundError as error:
        raise InvalidTableError(str(file), "no such file") from error
    except (pa.ArrowException, OSError) as error:
        raise InvalidTableError(str(file), f"not a readable Parquet file: {first_line(error)}") from error


def rows_of(file: Path) -> int:
    """How many rows a file has, from its footer alone. Raises: InvalidTableError."""
    with open_parquet(file) as source:
        return int(source.metadata.num_rows)


def first_line(error: BaseException) -> str:
    """What a library says, without what it says on further lines."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
