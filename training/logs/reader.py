"""The one reader of files that others wrote: every type that loses nothing, bad rows put aside, damaged files named."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bandit.errors import InvalidTableError
from training.logs.columns import Mask, Problems, converted, row_problems, type_problem
from training.logs.files import parquet_files
from training.logs.rejected import RejectedRows
from training.logs.tables import first_line, open_parquet

_ROWS_PER_BATCH = 1 << 17
Rule = Callable[[pa.RecordBatch], Problems]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a log or file is read.

    schema: columns to return; `optional` of them may be missing.
    now: UTC microseconds, to judge times by; None: no time is in the future.
    actions: the known ones, None when any is.
    rule: problems that only this kind of file has.
    """

    schema: pa.Schema
    optional: Sequence[str] = ()
    nullable: Sequence[str] = ()
    now: int | None = None
    actions: Sequence[str] | None = None
    rule: Rule = field(default=lambda batch: iter(()))


def read_files(path: str | Path, reading: Reading, rejected: RejectedRows) -> pa.Table:
    """The good rows of a file or folder, as the schema of `reading`; the bad ones are added to `rejected`.

    Raises: InvalidTableError for a file that is none, is damaged, or lacks a column.
    """
    batches = [batch for file in parquet_files(path) for batch in good_rows(file, reading, rejected)]
    schema = batches[0].schema if batches else reading.schema
    columns = [name for name in schema.names if all(name in batch.schema.names for batch in batches)]
    return pa.Table.from_batches([batch.select(columns) for batch in batches], pa.schema([schema.field(name) for name in columns]))


def good_rows(file: Path, reading: Reading, rejected: RejectedRows) -> Iterator[pa.RecordBatch]:
    """The good rows of one file, some at a time.

    Raises: InvalidTableError.
    """
    source = open_parquet(file)
    names = check_schema(file, source, reading)
    schema = pa.schema([reading.schema.field(name) for name in names])
    start = 0
    try:
        for batch in source.iter_batches(_ROWS_PER_BATCH, columns=names):
            columns = batch.select(names)
            yield _good(file, start, columns, schema, reading, rejected)
            start += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise InvalidTableError(str(file), f"damaged: {first_line(error)}") from error
    finally:
        source.close()


def check_schema(file: Path, source: pq.ParquetFile, reading: Reading) -> list[str]:
    """The columns of the schema that the file has, once it is sure that they can be read.

    Raises: InvalidTableError for a column that is missing, stands twice, or has a type that would lose something.
    """
    schema = source.schema_arrow
    int96 = {
        column.path for column in (source.schema.column(place) for place in range(len(source.schema))) if column.physical_type == "INT96"
    }
    names = [column.name for column in reading.schema if column.name not in reading.optional or column.name in schema.names]
    for name in names:
        expected = reading.schema.field(name).type
        stands = schema.names.count(name)
        if not stands:
            raise InvalidTableError(str(file), f"missing, expected {expected}; the file has {schema.names}", column=name)
        if stands > 1:
            raise InvalidTableError(str(file), f"stands {stands} times, expected one column of this name", column=name)
        problem = type_problem(schema.field(name).type, expected, int96=name in int96)
        if problem:
            raise InvalidTableError(str(file), problem, column=name)
    return names


def _good(file: Path, start: int, batch: pa.RecordBatch, schema: pa.Schema, reading: Reading, rejected: RejectedRows) -> pa.RecordBatch:
    problems: list[tuple[str, Mask]] = []
    columns = []
    for expected in schema:
        values, column_problems = converted(batch.column(expected.name), expected.type)
        columns.append(values)
        problems += [(f"{expected.name}: {problem}", mask) for problem, mask in column_problems]
    ours = pa.RecordBatch.from_arrays(columns, schema=schema)
    problems += row_problems(ours, now=reading.now, actions=reading.actions, nullable=reading.nullable)
    problems += reading.rule(ours)
    rejected.rows += batch.num_rows
    bad = np.zeros(batch.num_rows, bool)
    for reason, mask in problems:
        fresh = mask & ~bad
        if fresh.any():
            rejected.add(file, start, batch, reason, np.flatnonzero(fresh))
            bad |= fresh
    return ours.filter(pa.array(~bad)) if bad.any() else ours


def without_repetitions(table: pa.Table) -> tuple[pa.Table, int]:
    """The table with identical rows once, the first of each, and how many were left out."""
    numbered = table.append_column("row", pa.array(np.arange(table.num_rows)))
    first = numbered.group_by(table.column_names, use_threads=False).aggregate([("row", "min")])["row_min"]
    repeated = table.num_rows - len(first)
    return (table.take(first.combine_chunks().sort()), repeated) if repeated else (table, 0)
