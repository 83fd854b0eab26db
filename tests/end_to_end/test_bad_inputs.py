"""Bad and strange inputs through the verbs: each ends with counts, or in one line that names the place. No traceback, nothing lost."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bandit.errors import QueryRewardsError
from bandit.settings.load import Settings, load_settings
from feature_repo import names
from tests.tables_made import (
    DAY,
    HOUR,
    NOW,
    decision,
    feedback,
    feedback_table,
    naive,
    unit_vectors,
    write_decisions,
    write_embeddings,
    write_feedback,
    write_history,
)
from training.clustering.cluster import Clustered, cluster
from training.console import main
from training.deployment import create
from training.features.fold import fold
from training.features.snapshots import newest_snapshot
from training.logs.archive import compact
from training.models.join import join

ITEMS = [f"{number}" for number in range(40)]
USERS = [f"u{number:02d}" for number in range(20)]
US = pa.timestamp("us", "UTC")


def deployment(folder: Path, toml: str = "") -> Settings:
    create(folder, f"[clustering]\nprocesses = 1\ntopics = 4\n{toml}")
    return load_settings(folder / "query_rewards.toml")


def history_table(folder: Path) -> pa.Table:
    rows = [
        (user, ITEMS[(7 * place + step) % 40], "repin", NOW - (step + 1) * DAY - place)
        for place, user in enumerate(USERS)
        for step in range(10)
    ]
    return pq.read_table(write_history(folder / "h.parquet", rows))


def replaced(table: pa.Table, column: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.schema.get_field_index(column), column, values)


def one_bad(table: pa.Table, column: str, value: object) -> pa.Table:
    values = table[column].to_pylist()
    values[7] = value
    return replaced(table, column, pa.array(values, table.schema.field(column).type))


def not_utf8(table: pa.Table, column: str) -> pa.Table:
    raw = pa.array([b"\xff\xfe" if row == 7 else value.encode() for row, value in enumerate(table[column].to_pylist())], pa.binary())
    return replaced(table, column, pa.Array.from_buffers(pa.string(), len(raw), raw.buffers()))


def problem(work: Callable[[], object]) -> str:
    """What the operator would read; anything but an error of ours is a traceback."""
    try:
        work()
    except QueryRewardsError as error:
        line = str(error)
        assert len(line.splitlines()) == 1, line
        assert len(line) < 2000
        return line
    return ""


# -- types ---------------------------------------------------------------------------------------------------------------------------

TEXTS = (pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int8(), pa.string()))
NUMBERS = (
    pa.int8(),
    pa.int32(),
    pa.int64(),
    pa.uint8(),
    pa.uint16(),
    pa.uint64(),
    pa.decimal128(38, 0),
    pa.dictionary(pa.int16(), pa.int64()),
)


def encoded(values: pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return values.combine_chunks().cast(kind.value_type).dictionary_encode()
    return values.cast(pa.int64()).cast(kind) if pa.types.is_decimal(kind) else values.cast(kind)


@pytest.mark.parametrize("kind", TEXTS + NUMBERS, ids=str)
def test_ids_of_any_type_are_the_same_ids(tmp_path: Path, kind: pa.DataType) -> None:
    table, vectors = history_table(tmp_path), unit_vectors(40, 8)
    space = pq.read_table(write_embeddings(tmp_path / "e.parquet", ITEMS, vectors))
    settings = deployment(tmp_path / "d")
    expected = clustered(settings, tmp_path, table, space)
    found = clustered(
        settings,
        tmp_path,
        replaced(table, "item_id", encoded(table["item_id"], kind)),
        replaced(space, "item_id", encoded(space["item_id"], kind)),
    )
    assert found == expected
    assert expected.users == 20


def clustered(
    settings: Settings, folder: Path, history: pa.Table | None = None, space: pa.Table | None = None, **options: object
) -> Clustered:
    """Cluster these tables, or the files that are there."""
    history_file, space_file = folder / "history.parquet", folder / "space.parquet"
    if history is not None:
        pq.write_table(history, history_file, **options)
    if space is None and not os.path.lexists(space_file):
        space = pq.read_table(write_embeddings(folder / "e.parquet", ITEMS, unit_vectors(40, 8)))
    if space is not None:
        pq.write_table(space, space_file)
    return cluster(settings, history=history_file, embeddings=space_file, as_of=NOW, now=NOW)


VECTORS = {
    "float16": pa.list_(pa.float16()),
    "float64": pa.list_(pa.float64()),
    "large": pa.large_list(pa.float32()),
    "fixed": pa.list_(pa.float32(), 8),
    "fixed float16": pa.list_(pa.float16(), 8),
    "decimals": pa.list_(pa.decimal128(30, 9)),
}


@pytest.mark.parametrize("name", VECTORS)
def test_vectors_of_any_type_are_the_same_vectors(tmp_path: Path, name: str) -> None:
    kind, vectors = VECTORS[name], unit_vectors(40, 8)
    rows = vectors.astype(np.float16) if pa.types.is_float16(kind.value_type) else vectors.astype(np.float64)
    flat = pa.array(rows.ravel()).cast(kind.value_type)
    if pa.types.is_fixed_size_list(kind):
        column = pa.FixedSizeListArray.from_arrays(flat, 8)
    else:
        shape = pa.LargeListArray if pa.types.is_large_list(kind) else pa.ListArray
        column = shape.from_arrays(pa.array(np.arange(41) * 8, pa.int64() if shape is pa.LargeListArray else pa.int32()), flat)
    settings = deployment(tmp_path / "d")
    plain = clustered(settings, tmp_path, history_table(tmp_path))
    found = clustered(settings, tmp_path, space=pa.table({"item_id": ITEMS, "embedding": column}))
    assert (found.clusters, found.normalised, found.rejected) == (plain.clusters, 0, {})


def test_whole_numbers_as_vectors_are_brought_to_unit_length(tmp_path: Path) -> None:
    rows = np.round(unit_vectors(40, 8) * 100).astype(np.int8)
    found = clustered(deployment(tmp_path / "d"), tmp_path, history_table(tmp_path), pa.table({"item_id": ITEMS, "embedding": list(rows)}))
    assert found.normalised > 30


TIMES: dict[str, Callable[[pa.Table], tuple[pa.Table, dict[str, object]]]] = {
    "nanoseconds": lambda t: (replaced(t, "occurred_at", t["occurred_at"].cast(pa.timestamp("ns", "UTC"))), {}),
    "INT96": lambda t: (t, {"use_deprecated_int96_timestamps": True}),
    "INT96 of Spark": lambda t: (naive(t, "occurred_at"), {"use_deprecated_int96_timestamps": True, "store_schema": False}),
    "another zone": lambda t: (replaced(t, "occurred_at", t["occurred_at"].cast(pa.timestamp("us", "Asia/Tokyo"))), {}),
    "seconds": lambda t: (replaced(t, "occurred_at", t["occurred_at"].cast(pa.timestamp("s", "UTC"), safe=False)), {}),
    "milliseconds": lambda t: (replaced(t, "occurred_at", t["occurred_at"].cast(pa.timestamp("ms", "UTC"), safe=False)), {}),
    "old format": lambda t: (t, {"version": "1.0"}),
    "gzip": lambda t: (t, {"compression": "gzip"}),
    "one row a group": lambda t: (t, {"row_group_size": 1}),
}


@pytest.mark.parametrize("name", TIMES)
def test_times_of_any_unit_are_read(tmp_path: Path, name: str) -> None:
    table, options = TIMES[name](history_table(tmp_path))
    assert clustered(deployment(tmp_path / "d"), tmp_path, table, **options).users == 20


# -- files that are refused, with the way out -------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "float ids": (lambda t: replaced(t, "item_id", t["item_id"].cast(pa.float64())), "'item_id': has type double"),
    "float32 ids": (lambda t: replaced(t, "item_id", t["item_id"].cast(pa.float32())), "'item_id': has type float"),
    "decimal ids": (lambda t: replaced(t, "item_id", t["item_id"].cast(pa.int64()).cast(pa.decimal128(38, 2))), "no identifiers"),
    "boolean ids": (lambda t: replaced(t, "user_id", pa.array([True] * 200)), "'user_id': has type bool"),
    "lists of ids": (lambda t: replaced(t, "user_id", pa.array([["u"]] * 200)), "'user_id': has type list"),
    "objects": (lambda t: replaced(t, "user_id", pa.array([{"id": "u"}] * 200)), "'user_id': has type struct"),
    "no zone": (lambda t: naive(t, "occurred_at"), "no time zone"),
    "no zone, nanoseconds": (lambda t: replaced(t, "occurred_at", t["occurred_at"].cast(pa.timestamp("ns"))), "no time zone"),
    "dates": (lambda t: replaced(t, "occurred_at", t["occurred_at"].cast(pa.date32())), "write it as a timestamp"),
    "numbers": (lambda t: replaced(t, "occurred_at", t["occurred_at"].cast(pa.int64())), "write it as a timestamp"),
    "text": (lambda t: replaced(t, "occurred_at", t["occurred_at"].cast(pa.string())), "write it as a timestamp"),
    "without users": (lambda t: t.drop_columns(["user_id"]), "'user_id': missing"),
    "without actions": (lambda t: t.drop_columns(["action"]), "'action': missing"),
    "other letters": (lambda t: t.rename_columns(["USER_ID", "ITEM_ID", "ACTION", "OCCURRED_AT"]), "missing"),
    "twice": (lambda t: t.append_column("item_id", t["item_id"]), "stands 2 times"),
    "no rows": (lambda t: t.slice(0, 0), "no engagement"),
    "impressions": (lambda t: replaced(t, "action", pa.array(["impression"] * 200)), "no engagement"),
    "floats as text": (lambda t: replaced(t, "item_id", pa.array([f"{item}.0" for item in t["item_id"].to_pylist()])), "such as '0.0'"),
    "unknown actions": (lambda t: replaced(t, "action", pa.array(["save"] * 200)), "200 of 200 rows"),
    "all null": (lambda t: replaced(t, "user_id", pa.nulls(200)), "200 of 200 rows"),
    "the year 50000": (lambda t: replaced(t, "occurred_at", pa.array([NOW * 1000] * 200, US)), "200 of 200 rows"),
    "a tenth of the users": (lambda t: t.slice(0, 20), "18 of the 20 users"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_history_that_cannot_be_used_is_one_line_and_the_last_snapshot_stays(tmp_path: Path, name: str) -> None:
    change, expected = REFUSED[name]
    settings, table = deployment(tmp_path / "d"), history_table(tmp_path)
    file = Path(clustered(settings, tmp_path, table).file)
    before = file.read_bytes()
    line = problem(lambda: clustered(settings, tmp_path, change(table)))
    assert expected in line
    assert "history.parquet" in line or str(settings.feature_repo_path / names.USER_CLUSTERS_PATH) in line
    assert (file.read_bytes(), newest_snapshot(file.parent, until=2**62)) == (before, file)


BROKEN_FILES: dict[str, Callable[[Path, bytes], object]] = {
    "empty": lambda file, data: file.write_bytes(b""),
    "cut off": lambda file, data: file.write_bytes(data[:-20]),
    "only its head": lambda file, data: file.write_bytes(data[:100]),
    "text": lambda file, data: file.write_bytes(b"user_id,item_id\nu,1\n"),
    "damaged pages": lambda file, data: file.write_bytes(data[:4] + os.urandom(len(data) // 2) + data[4 + len(data) // 2 :]),
    "damaged footer": lambda file, data: file.write_bytes(data[:-60] + b"\xff" * 40 + data[-20:]),
    "a link to nothing": lambda file, data: (file.unlink(missing_ok=True), file.symlink_to("/nowhere/at/all.parquet")),
    "CSV that ends as Parquet does": lambda file, data: file.write_bytes(b"a,b\n1,2\nPAR1"),
}


@pytest.mark.parametrize("name", BROKEN_FILES)
@pytest.mark.parametrize("which", ["history", "space"])
def test_a_file_that_is_no_parquet_file_is_one_line(tmp_path: Path, name: str, which: str) -> None:
    settings = deployment(tmp_path / "d")
    clustered(settings, tmp_path, history_table(tmp_path))
    file = tmp_path / f"{which}.parquet"
    BROKEN_FILES[name](file, file.read_bytes())
    assert str(file) in problem(lambda: clustered(settings, tmp_path))


PATHS = (
    "s3://bucket/h.parquet",
    "gs://bucket/h",
    "file:///h.parquet",
    "https://example.org/h.parquet",
    "$HOME/h.parquet",
    "nothing.parquet",
)


@pytest.mark.parametrize("path", PATHS)
def test_a_path_that_names_no_file_of_this_machine_is_one_line(tmp_path: Path, path: str) -> None:
    settings = deployment(tmp_path / "d")
    space = write_embeddings(tmp_path / "e.parquet", ITEMS, unit_vectors(40, 8))
    line = problem(lambda: cluster(settings, history=Path(path), embeddings=space, as_of=NOW, now=NOW))
    assert line.startswith(str(Path(path)))


FOLDERS = (
    "plain",
    "user_id=ann",
    "occurred_at=2026-01-01",
    "part[1]",
    "a*b",
    "who?",
    "[!a]",
    "**",
    "x.parquet",
    "a b",
    "ü",
    "back\\slash",
    "{a,b}",
    "%20",
    "#1",
)


@pytest.mark.parametrize("name", FOLDERS)
def test_names_of_folders_are_only_names(tmp_path: Path, name: str) -> None:
    """A deployment in such a folder, a history and logs with such a folder, beside names that a pattern would also take."""
    table = history_table(tmp_path)
    settings = deployment(tmp_path / name / "d")
    parts = tmp_path / name / "history"
    (parts / name).mkdir(parents=True)
    for place in range(2):
        pq.write_table(table.slice(place * 100, 100), parts / name / f"part-{place}.parquet")
    for left_out in ("_SUCCESS", "_metadata.parquet", ".part-0.parquet.crc", "._part-0.parquet"):
        (parts / name / left_out).write_bytes(b"\0\5\x16\7")
    (parts / "_temporary").mkdir()
    pq.write_table(table.slice(0, 100), parts / "_temporary" / "part-9.parquet")
    space = write_embeddings(tmp_path / "e.parquet", ITEMS, unit_vectors(40, 8))
    found = cluster(settings, history=parts, embeddings=space, as_of=NOW, now=NOW)
    assert (found.users, found.engagements, found.repeated) == (20, 200, 0)
    assert cluster(settings, history=parts, embeddings=space, as_of=NOW + 1, now=NOW).changed == 0
    folder = settings.data_path / "feedback" / name
    folder.mkdir(parents=True)
    pq.write_table(feedback_table([feedback(f"e{place}", at=NOW - HOUR, user_id="bob") for place in range(9)]), folder / f"{name}.parquet")
    beside = settings.data_path / "feedback" / "beside.parquet"
    pq.write_table(feedback_table([feedback("other", at=NOW - HOUR, user_id="eve")]), beside)
    folded = fold(settings, as_of=NOW, now=NOW)
    assert (folded.events, pq.ParquetFile(folded.file).read()["user_id"].to_pylist()) == (10, ["bob", "eve"])
    assert fold(settings, as_of=NOW + 1, now=NOW).users == 0


def test_links_are_followed_and_circles_end(tmp_path: Path) -> None:
    settings, table = deployment(tmp_path / "d"), history_table(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    pq.write_table(table, tmp_path / "elsewhere" / "part.parquet")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "parts" / "circle").symlink_to(tmp_path / "parts")
    space = write_embeddings(tmp_path / "e.parquet", ITEMS, unit_vectors(40, 8))
    assert cluster(settings, history=tmp_path / "parts", embeddings=space, as_of=NOW).users == 20


# -- rows ------------------------------------------------------------------------------------------------------------------------------

BAD_IDS = ("", "a\nb", "nul\0z", "\x7f", "\x85", "\u2028", "x" * 257, "é" * 129, None)
GOOD_IDS = ("x" * 256, "é" * 128, " ", "M\u00fcller", "\u6d77", "a\u200cb", "'; drop table x", "../../etc", "123.0", "NULL", "🧑‍🍳")
COLUMNS = ("event_id", "decision_id", "user_id", "cluster_id", "query_id", "item_id")
BAD_ROWS = [(column, value) for column in COLUMNS for value in BAD_IDS]
BAD_ROWS += [("action", "longpress"), ("action", ""), ("action", None), ("action", "Repin")]
BAD_ROWS += [("occurred_at", at) for at in (NOW + 6 * 60_000_000, NOW + 400 * DAY, 0, -DAY, None)]


def events_of(count: int) -> list[object]:
    return [feedback(f"e{number}", at=NOW - 2 * DAY - number, user_id=USERS[number % 20]) for number in range(count)]


def test_one_bad_event_stops_no_step_and_every_step_refuses_the_same(tmp_path: Path) -> None:
    """Each bad row in a file of its own, so that none hides another."""
    settings, good = deployment(tmp_path / "d", "[intake]\ntolerate = 0.1\n"), feedback_table(events_of(1000))  # type: ignore[arg-type]
    folder = settings.data_path / "feedback"
    folder.mkdir(parents=True)
    pq.write_table(good, folder / "a.parquet")
    write_decisions(settings, [decision(1, at=NOW - 3 * DAY)])
    expected = fold(settings, as_of=NOW, now=NOW)
    day = folder / "2025-04-28"
    day.mkdir()
    row = feedback_table([feedback("z", at=NOW - HOUR)])
    for number, (column, value) in enumerate(BAD_ROWS):
        bad = replaced(row, column, pa.array([value], row.schema.field(column).type))
        pq.write_table(bad, day / f"{number}.parquet")
    pq.write_table(not_utf8(feedback_table(events_of(8)), "user_id").slice(7), day / "not-utf8.parquet")  # type: ignore[arg-type]
    found = fold(settings, as_of=NOW + 1, now=NOW)
    assert sum(found.rejected.values()) == len(BAD_ROWS) + 1
    assert (found.events, found.users, found.quarantined) == (expected.events, 0, {})
    written = pa.concat_tables([pq.read_table(file) for file in (settings.data_path / "rejected").iterdir()])
    assert {Path(file).name for file in written["file"].to_pylist()} == {f"{number}.parquet" for number in range(len(BAD_ROWS))} | {
        "not-utf8.parquet"
    }
    files = sorted(folder.rglob("*.parquet"))
    assert compact(settings, now=NOW) == 0  # nothing of a file with bad rows is lost
    assert sorted(folder.rglob("*.parquet")) == files
    joined = join(settings, as_of=NOW)
    future = sum(column == "occurred_at" and value is not None and value > NOW for column, value in BAD_ROWS)
    assert sum(joined.rejected.values()) == len(BAD_ROWS) + 1 - future  # what is later than a join is none of its
    validator = settings.feedback_validator()
    for column, value in BAD_ROWS:  # and `record` and the stream refuse them, too
        if value is not None:
            changed = {"at": value} if column == "occurred_at" else {"at": NOW - HOUR, column: value}
            event = feedback(**({"event_id": "z"} | changed))  # type: ignore[arg-type]
            assert validator.rejection_reason(event, NOW), (column, value)


def test_ids_of_every_script_pass_every_door(tmp_path: Path) -> None:
    settings = deployment(tmp_path / "d")
    events = [feedback(value, at=NOW - HOUR, **dict.fromkeys(COLUMNS[1:], value)) for value in GOOD_IDS]
    write_feedback(settings, events)
    found = fold(settings, as_of=NOW, now=NOW)
    assert (found.events, found.rejected) == (len(GOOD_IDS), {})
    validator = settings.feedback_validator()
    assert [validator.rejection_reason(event, NOW) for event in events] == [""] * len(GOOD_IDS)
    rows = [(value, ITEMS[0], "repin", NOW - DAY) for value in GOOD_IDS]
    history = write_history(tmp_path / "h.parquet", rows)
    space = write_embeddings(tmp_path / "e.parquet", ITEMS, unit_vectors(40, 8))
    assert cluster(settings, history=history, embeddings=space, as_of=NOW, now=NOW).users == len(GOOD_IDS)


def test_more_bad_rows_than_are_tolerated_stop_the_fold(tmp_path: Path) -> None:
    settings, table = deployment(tmp_path / "d"), feedback_table(events_of(100))  # type: ignore[arg-type]
    folder = settings.data_path / "feedback"
    folder.mkdir(parents=True)
    pq.write_table(one_bad(table, "action", "longpress"), folder / "a.parquet")
    assert fold(settings, as_of=NOW, now=NOW).rejected == {"action: unknown action": 1}
    pq.write_table(one_bad(one_bad(table, "action", "longpress"), "user_id", "").take([*range(100), 7]), folder / "a.parquet")
    line = problem(lambda: fold(settings, as_of=NOW + 1, now=NOW))
    assert line.startswith(f"{folder}: 2 of 101 rows cannot be used")
    assert "`intake.tolerate`" in line


FOREIGN: dict[str, Callable[[pa.Table], pa.Table]] = {
    "no zone": lambda t: naive(t, "occurred_at"),
    "a column less": lambda t: t.drop_columns(["query_id"]),
    "another table": lambda t: pa.table({"x": [1]}),
    "float ids": lambda t: replaced(t, "user_id", pa.array(np.arange(5.0))),
}


@pytest.mark.parametrize("name", [*BROKEN_FILES, *FOREIGN])
def test_a_file_that_is_none_of_the_log_goes_into_quarantine_and_the_run_goes_on(tmp_path: Path, name: str) -> None:
    settings = deployment(tmp_path / "d")
    write_feedback(settings, events_of(50))  # type: ignore[arg-type]
    folder = settings.data_path / "feedback" / "2025-04-28"
    folder.mkdir()
    file = folder / "x.parquet"
    table = feedback_table(events_of(5))  # type: ignore[arg-type]
    pq.write_table(FOREIGN[name](table) if name in FOREIGN else table, file)
    if name in BROKEN_FILES:
        BROKEN_FILES[name](file, file.read_bytes())
    data = b"" if file.is_symlink() else file.read_bytes()
    found = fold(settings, as_of=NOW, now=NOW)
    assert (found.events, list(found.quarantined)) == (50, [str(file)])
    moved = settings.data_path / "quarantine" / "2025-04-28" / "x.parquet"
    assert not os.path.lexists(file)
    assert os.path.lexists(moved)
    assert moved.is_symlink() or moved.read_bytes() == data  # nothing is lost
    assert str(file) in moved.with_name("x.parquet.reason.txt").read_text()
    assert fold(settings, as_of=NOW + 1, now=NOW).quarantined == {}


TAKEN: dict[str, Callable[[pa.Table], pa.Table]] = {
    "a column more": lambda t: t.append_column("country", pa.array(["DE"] * 5)),
    "large text": lambda t: t.cast(pa.schema([(f.name, pa.large_string() if f.type == pa.string() else f.type) for f in t.schema])),
    "text views": lambda t: t.cast(pa.schema([(f.name, pa.string_view() if f.type == pa.string() else f.type) for f in t.schema])),
    "bytes": lambda t: t.cast(pa.schema([(f.name, pa.binary() if f.type == pa.string() else f.type) for f in t.schema])),
    "another order": lambda t: t.select(t.column_names[::-1]),
    "nanoseconds": lambda t: replaced(t, "occurred_at", t["occurred_at"].cast(pa.timestamp("ns", "UTC"))),
    "milliseconds": lambda t: replaced(t, "occurred_at", t["occurred_at"].cast(pa.timestamp("ms", "UTC"), safe=False)),
    "numbers as ids": lambda t: replaced(t, "user_id", pa.array(range(5), pa.uint64())),
    "categories": lambda t: replaced(t, "action", t["action"].combine_chunks().dictionary_encode()),
    "no rows": lambda t: t.slice(0, 0),
}


@pytest.mark.parametrize("name", TAKEN)
def test_fold_and_compact_take_the_same_files(tmp_path: Path, name: str) -> None:
    settings = deployment(tmp_path / "d")
    table = feedback_table(events_of(10))  # type: ignore[arg-type]
    day = settings.data_path / "feedback" / "2025-04-28"
    day.mkdir(parents=True)
    strange = TAKEN[name](table.slice(5))
    pq.write_table(table.slice(0, 5), day / "part-0.parquet")
    pq.write_table(strange, day / "part-1.parquet")
    found = fold(settings, as_of=NOW, now=NOW)
    assert (found.events, found.quarantined, found.rejected) == (5 + strange.num_rows, {}, {})
    assert compact(settings, now=NOW) == 1
    assert fold(settings, as_of=NOW + 1, now=NOW).events == found.events


def test_a_folder_named_like_a_file_is_a_folder(tmp_path: Path) -> None:
    settings = deployment(tmp_path / "d")
    write_feedback(settings, events_of(20))  # type: ignore[arg-type]
    (settings.data_path / "feedback" / "empty.parquet").mkdir()
    (settings.data_path / "feedback" / "x.parquet").mkdir()
    pq.write_table(feedback_table([feedback("z", at=NOW - HOUR)]), settings.data_path / "feedback" / "x.parquet" / "part-0.parquet")
    (settings.data_path / "feedback" / "x.parquet" / "_SUCCESS").touch()
    assert fold(settings, as_of=NOW, now=NOW).events == 21


def test_a_damaged_snapshot_is_put_aside_and_its_users_folded_again(tmp_path: Path) -> None:
    settings = deployment(tmp_path / "d")
    write_feedback(settings, events_of(20))  # type: ignore[arg-type]
    first = fold(settings, as_of=NOW, now=NOW)
    Path(first.file).write_bytes(b"PAR1")
    assert fold(settings, as_of=NOW + 1, now=NOW).users == first.users


# -- the disk --------------------------------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A file system of 64 kB at this folder; without the right to mount one, no file may grow beyond 16 kB. Says which."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False)
    if not mounted.returncode:
        try:
            yield True
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        return
    sys.stderr.write("NO RIGHT TO MOUNT: the full disk is played by RLIMIT_FSIZE\n")
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, before[1]))
    try:
        yield False
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_one_line_leaves_nothing_behind_and_the_next_run_is_whole(tmp_path: Path) -> None:
    settings = deployment(tmp_path / "d")
    rng = np.random.default_rng(0)
    events = [feedback(f"e{number}", at=NOW - HOUR, user_id=rng.bytes(20).hex(), cluster_id=rng.bytes(20).hex()) for number in range(3000)]
    write_feedback(settings, events)
    rewards = settings.feature_repo_path / names.CLUSTER_REWARDS_PATH
    with small_disk(rewards):
        line = problem(lambda: fold(settings, as_of=NOW, now=NOW))
        assert str(rewards) in line
        assert "space" in line or "large" in line, line
        assert [file.name for file in rewards.iterdir() if file.name.startswith("2") or "partial" in file.name] == []
    assert fold(settings, as_of=NOW, now=NOW).events == 3000


UNWRITABLE = "/sys" if os.geteuid() == 0 else "/"


@pytest.mark.parametrize("verb", ["init", "cluster", "fold", "materialize", "join", "train", "promote", "retrain"])
def test_a_folder_that_cannot_be_written_is_one_line(
    tmp_path: Path, verb: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    deployment(tmp_path / "d")
    toml = tmp_path / "d" / "query_rewards.toml"
    toml.write_text(f'redis_url = "redis://127.0.0.1:1/0"\ndata = "{UNWRITABLE}/query-rewards"\n')
    history_table(tmp_path)
    write_embeddings(tmp_path / "e.parquet", ITEMS, unit_vectors(40, 8))
    arguments = {
        "init": [f"{UNWRITABLE}/query-rewards"],
        "cluster": ["--history", str(tmp_path / "h.parquet"), "--embeddings", str(tmp_path / "e.parquet")],
    }
    options = [] if verb == "init" else ["--settings", str(toml)]
    line, status = said([verb, *arguments.get(verb, []), *options], monkeypatch, capfd)
    assert status in {1, 4}
    assert f"{UNWRITABLE}/query-rewards" in line or "redis" in line.lower()


def said(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> tuple[str, int]:
    monkeypatch.setattr(sys, "argv", ["query-rewards", *arguments])
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert isinstance(ended.value.code, int)
    return lines[0], int(ended.value.code)


BAD_SETTINGS = (
    'data = "s3://bucket/qr"',
    'data = "$HOME/qr"',
    'data = ""',
    "data = 3",
    'data = "a\\nb"',
    'feature_repo = "gs://b/c"',
    "[intake]\ntolerate = -1",
    "[intake]\ntolerate = 2",
    '[intake]\nshrink = "much"',
    "[intake]\nunknown = 1",
    "[intake",
    "\\",
    "[reward.weights]\nrepin = nan",
    "[clustering]\nmax_items = 0",
    "intake = 1",
    'policy = "bandit"',
    "[stream]\nwindow_hours = inf",
    "redis_url = 5",
)


@pytest.mark.parametrize("toml", BAD_SETTINGS)
def test_a_setting_that_cannot_be_is_one_line_that_names_it(
    tmp_path: Path, toml: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "query_rewards.toml"
    file.write_text(toml)
    line, status = said(["fold", "--settings", str(file)], monkeypatch, capfd)
    assert status == 2
    assert "query_rewards.toml" in line
