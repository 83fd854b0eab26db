"""Snapshots of the feature views on disk: one file for each time, each with a generation that only grows.

A snapshot of `user_clusters` holds every user; one of `cluster_rewards` holds those with news. What is online is compared with what is on
disk by generation, never by a clock: a row goes online when its generation is greater than that of the row that is there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bandit.types import MICROSECONDS_PER_DAY, Ints
from feature_repo import names
from training.logs.lineage import time_of, timed_file
from training.logs.tables import open_parquet, read_own, write_table

_GENERATION = b"generation"  # of a file, in its footer


@dataclass(frozen=True, slots=True, kw_only=True)
class Latest:
    """The newest row of each user among the snapshots of a folder.

    file: place of the row's file in `files`; row: its number in that file; generation: of the row. Each (users,).
    """

    files: tuple[Path, ...]
    users: pa.Array
    file: Ints
    row: Ints
    generation: Ints


def snapshot_files(folder: Path) -> list[Path]:
    """Snapshots of a folder in the order of their names; a folder that is not there has none."""
    return sorted(file for file in folder.glob("*.parquet") if not file.name.startswith((".", "_"))) if folder.is_dir() else []


def snapshot_time(file: Path) -> int:
    """Time of a snapshot, UTC microseconds: from its name, or from its rows when somebody named it otherwise; 0 without rows."""
    with contextlib.suppress(ValueError):
        return time_of(file)
    latest = pc.max(read_own(file, columns=[names.TIMESTAMP])[names.TIMESTAMP].cast(pa.timestamp("us")).cast(pa.int64())).as_py()
    return latest or 0


def newest_snapshot(folder: Path, *, until: int) -> Path | None:
    """The snapshot of the latest time up to `until` (UTC microseconds), of the greatest generation at that time; None without any."""
    times = {file: snapshot_time(file) for file in snapshot_files(folder)}
    candidates = [file for file, moment in times.items() if moment <= until]
    return max(candidates, key=lambda file: (times[file], _generation_of(file)), default=None)


def served_users(folder: Path, *, until: int) -> pa.Array:
    """Users with clusters in the newest snapshot of `user_clusters` up to this time (UTC microseconds)."""
    file = newest_snapshot(folder, until=until)
    if file is None:
        return pa.array([], pa.string())
    table = read_own(file, columns=[names.JOIN_KEY, names.CLUSTER_IDS])
    return table.filter(pc.greater(pc.list_value_length(table[names.CLUSTER_IDS]), 0))[names.JOIN_KEY].combine_chunks()


def newest_generation(folder: Path) -> int:
    """Greatest generation of the folder's snapshots, 0 without any; read from the footers."""
    return max((_generation_of(file) for file in snapshot_files(folder)), default=0)


def write_snapshot(folder: Path, table: pa.Table, schema: pa.Schema, *, as_of: int) -> Path:
    """Write the snapshot as of this time (UTC microseconds), under the next generation.

    A snapshot of the same time is replaced; one with the same rows stays as it is, so that a step that is repeated changes no byte.

    Args:
        folder: of the view.
        table: rows without their generation.
        schema: of the view, with the column of the generation.
        as_of: time of the rows.
    """
    column = generation_column(schema)
    file = timed_file(folder, as_of)
    if file.exists():
        before = read_own(file)
        if column in before.column_names and before.drop_columns([column]).replace_schema_metadata().equals(
            table.replace_schema_metadata()
        ):
            return file
    generation = newest_generation(folder) + 1
    rows = table.append_column(column, pa.array(np.full(table.num_rows, generation, np.int64))).select(schema.names).cast(schema)
    write_table(rows.replace_schema_metadata({_GENERATION: str(generation).encode()}), file)
    return file


def generation_column(schema: pa.Schema) -> str:
    """Which of a view's columns holds the generation."""
    (column,) = {names.CLUSTERS_GENERATION, names.REWARDS_GENERATION} & set(schema.names)
    return column


def latest_rows(folder: Path, column: str, *, until: int) -> Latest:
    """The newest row of each user: of the latest time up to `until` (UTC microseconds), and of the greatest generation at that time."""
    files = tuple(snapshot_files(folder))
    tables = []
    for number, file in enumerate(files):
        with open_parquet(file) as source:
            there = source.schema_arrow.names
        table = read_own(file, columns=[names.JOIN_KEY, names.TIMESTAMP, *([column] if column in there else [])])
        generation = table[column].cast(pa.int64()).fill_null(0).to_numpy() if column in there else np.zeros(table.num_rows, np.int64)
        at = table[names.TIMESTAMP].cast(pa.timestamp("us")).cast(pa.int64())
        columns = {"user": table[names.JOIN_KEY].cast(pa.string()), "at": at, "generation": pa.array(generation)}
        columns |= {"file": pa.array(np.full(table.num_rows, number)), "row": pa.array(np.arange(table.num_rows))}
        rows = pa.table(columns)
        tables.append(rows.filter(pa.array(at.to_numpy() <= until)))
    every = pa.concat_tables(tables) if tables else pa.table({name: pa.array([], kind) for name, kind in _EMPTY.items()})
    order = [("user", "ascending"), ("at", "descending"), ("generation", "descending"), ("file", "descending")]
    ordered = every.sort_by(order)
    users = ordered["user"].combine_chunks()
    first = np.ones(len(users), np.bool_)
    if len(users):
        first[1:] = np.asarray(pc.not_equal(users.slice(1), users.slice(0, len(users) - 1)))
    chosen = ordered.filter(pa.array(first))
    file, row, generation = (chosen[name].to_numpy().astype(np.int64) for name in ("file", "row", "generation"))
    return Latest(files=files, users=chosen["user"].combine_chunks(), file=file, row=row, generation=generation)


_EMPTY: Mapping[str, pa.DataType] = {
    "user": pa.string(),
    "at": pa.int64(),
    "generation": pa.int64(),
    "file": pa.int64(),
    "row": pa.int64(),
}


def forget_snapshots(folder: Path, *, as_of: int, days: float) -> int:
    """Remove full snapshots that were replaced more than so many days ago; returns how many went.

    A point-in-time join for a later moment than that gives what it gave before.
    """
    limit = as_of - round(days * MICROSECONDS_PER_DAY)
    kept = newest_snapshot(folder, until=limit)
    old = [file for file in snapshot_files(folder) if kept is not None and snapshot_time(file) < snapshot_time(kept)]
    for file in old:
        file.unlink(missing_ok=True)
    return len(old)


def merge_snapshots(folder: Path, schema: pa.Schema, *, until: int) -> int:
    """Join the snapshots up to this time (UTC microseconds) into the newest of them; returns how many went.

    Of each user the newest row stays, with its own time and generation: a point-in-time join for a later moment gives what it gave before.
    The joined file takes the name of the newest, before the others go: in between, their rows are twice there.
    """
    old = [file for file in snapshot_files(folder) if (moment := _named_time(file)) is not None and moment <= until]
    if len(old) < 2:
        return 0
    latest = latest_rows(folder, generation_column(schema), until=until)
    tables = []
    for number, file in enumerate(latest.files):
        table = read_own(file)
        table = table.take(pa.array(np.sort(latest.row[latest.file == number])))
        for column in schema:
            if column.name not in table.column_names:
                table = table.append_column(column, pa.nulls(table.num_rows, column.type))
        tables.append(table.select(schema.names).cast(schema))
    base = old[-1]
    metadata = {_GENERATION: str(max(map(_generation_of, old))).encode()}
    write_table(pa.concat_tables(tables).sort_by(names.JOIN_KEY).replace_schema_metadata(metadata), base, parts=old)
    for file in old[:-1]:
        file.unlink()
    return len(old) - 1


def _named_time(file: Path) -> int | None:
    try:
        return time_of(file)
    except ValueError:
        return None


def adopt_single_file(folder: Path) -> None:
    """Take over the one file that `user_clusters` was in before its snapshots were kept."""
    file = folder.with_suffix(".parquet")
    if file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        file.replace(timed_file(folder, snapshot_time(file)))


def _generation_of(file: Path) -> int:
    """From the footer, or from the rows where another program wrote the file again."""
    with open_parquet(file) as source:
        footer = source.metadata
    (column,) = {names.CLUSTERS_GENERATION, names.REWARDS_GENERATION} & set(footer.schema.to_arrow_schema().names) or {""}
    noted = int((footer.metadata or {}).get(_GENERATION, b"0"))
    return max(noted, pc.max(read_own(file, columns=[column])[column]).as_py() or 0) if column and not noted else noted
