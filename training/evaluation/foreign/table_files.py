"""Tables as files: Parquet, text with a delimiter, and JSON lines, read in batches."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bandit.errors import InvalidTableError
from bandit.rewards.feedback import DECODE_ERRORS
from training.evaluation.foreign.conditions import LEFT_OUT, Conditions
from training.evaluation.foreign.dsjson import CUT
from training.evaluation.foreign.logged_rows import Rows, Tally, short
from training.evaluation.foreign.table_columns import Layout, layout_of, refuse_twice, rows_of_columns
from training.evaluation.foreign.text_lines import TextFile, one_line

_BATCH = 65_536  # rows of Parquet read at once
_CHUNK = 16_384  # rows of text turned into arrays at once
_DELIMITERS = ",\t;|"
_Record = tuple[int, dict[str, Any]]  # number of the row, cells by column
_json = msgspec.json.Decoder()


def read_parquet(file: Path, conditions: Conditions, tally: Tally) -> Iterator[Rows]:
    """The rows of a Parquet file, batch by batch.

    Raises: InvalidTableError for a damaged file, or columns that are missing or ambiguous.
    """
    try:
        with pq.ParquetFile(file) as source:
            columns = source.schema_arrow.names
            layout = _layout(file, columns, conditions)
            done = 0
            for batch in source.iter_batches(_BATCH, columns=[*{*layout.columns, *conditions.columns}]):
                rows = np.arange(done, done + batch.num_rows)
                done += batch.num_rows
                tally.rows += batch.num_rows
                kept = conditions.mask(batch, file)
                tally.leave(LEFT_OUT, int((~kept).sum()))
                yield rows_of_columns(rows[kept], batch.filter(pa.array(kept)).column, layout, tally)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InvalidTableError(str(file), f"not a readable Parquet file: {one_line(error)}") from error


def read_delimited(source: TextFile, conditions: Conditions, tally: Tally) -> Iterator[Rows]:
    """The rows of text with a header and a delimiter: comma, tab, semicolon or bar, whichever the header has most of.

    A decimal comma is read where nothing else can be meant: the delimiter is another, and no probability has a point.
    """
    lines = _Decoded(source)
    header_line = next((line for line in source.head if line.strip()), b"").decode("utf-8", "replace")
    delimiter = max(_DELIMITERS, key=header_line.count)
    records = csv.reader(lines, delimiter=delimiter)
    try:
        header = [name.strip() for name in next(records)]
    except (StopIteration, csv.Error):
        header = []
    if lines.damaged or not header:
        raise InvalidTableError(str(source.file), "its first line is no header in UTF-8: save the file as UTF-8")
    layout = _layout(source.file, header, conditions)
    wanted = _wanted(_delimited(records, lines, header, tally), conditions, tally)
    chunk = list(islice(wanted, _CHUNK))
    probabilities = [cells[layout.numbers["probability"]] for _, cells in chunk]
    if delimiter != "," and any("," in cell for cell in probabilities) and not any("." in cell for cell in probabilities):
        layout = replace(layout, decimal=",")
    while chunk:
        yield _rows(chunk, layout, tally)
        chunk = list(islice(wanted, _CHUNK))


def read_json_lines(source: TextFile, conditions: Conditions, tally: Tally) -> Iterator[Rows]:
    """The rows of a file with one JSON object a line, its columns by name. A column that no row has is missing."""
    seen: set[str] = set()
    wanted = _wanted(_objects(source, seen, tally), conditions, tally)
    chunk = list(islice(wanted, _CHUNK))
    layout = layout_of(source.file, sorted(seen)) if seen else None
    while chunk and layout is not None:
        yield _rows(chunk, layout, tally)
        chunk = list(islice(wanted, _CHUNK))


def _layout(file: Path, columns: list[str], conditions: Conditions) -> Layout:
    conditions.require(file, columns)
    refuse_twice(file, columns, conditions.columns)
    return layout_of(file, columns)


def _wanted(records: Iterator[_Record], conditions: Conditions, tally: Tally) -> Iterator[_Record]:
    for number, record in records:
        if conditions.hold(record):
            yield number, record
        else:
            tally.leave(LEFT_OUT)


def _rows(records: list[_Record], layout: Layout, tally: Tally) -> Rows:
    def column(name: str) -> pa.Array:
        return pa.array([_cell(record.get(name)) for _, record in records], pa.string())

    return rows_of_columns(np.array([number for number, _ in records]), column, layout, tally)


def _cell(value: object) -> str | None:
    """A value of JSON or CSV as the text that `table_columns` reads."""
    return value if value is None or isinstance(value, str) else msgspec.json.encode(value).decode()


class _Decoded:
    """Lines as text for the CSV reader. `damaged`: the record that was read last is not UTF-8; `whole`: its last line has an end."""

    def __init__(self, source: TextFile) -> None:
        self._lines = source.lines()
        self.damaged = False
        self.whole = True

    def __iter__(self) -> _Decoded:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.whole = line.whole
        try:
            return line.text.decode() + "\n"
        except UnicodeDecodeError:
            self.damaged = True
            return line.text.decode("utf-8", "replace") + "\n"


def _delimited(records: Iterator[list[str]], lines: _Decoded, header: list[str], tally: Tally) -> Iterator[_Record]:
    """Records that can be read; `number` counts the rows below the header from 0."""
    number = -1
    while True:
        lines.damaged = False
        problem = ""
        try:
            cells = next(records)
        except StopIteration:
            return
        except csv.Error as error:
            cells, problem = [""], one_line(error)
        if not cells:
            continue
        number += 1
        tally.rows += 1
        if lines.damaged:
            problem = "not UTF-8: save the file as UTF-8"
        elif not problem and len(cells) != len(header):
            problem = f"{len(cells)} cells, the header has {len(header)}"
        if not problem:
            yield number, dict(zip(header, cells, strict=True))
        elif not lines.whole:
            tally.leave(CUT)
        else:
            tally.refuse(number, "not a row of the table", problem)


def _objects(source: TextFile, seen: set[str], tally: Tally) -> Iterator[_Record]:
    for number, line in enumerate(source.lines()):
        if not line.text.strip():
            continue
        tally.rows += 1
        try:
            record = _json.decode(line.text)
        except DECODE_ERRORS as error:
            if line.whole:
                tally.refuse(number, "not a JSON object", one_line(error))
            else:
                tally.leave(CUT)
            continue
        if isinstance(record, dict):
            seen.update(record)
            yield number, record
        else:
            tally.refuse(number, "not a JSON object", f"{short([record])} is not a JSON object")
