"""The clustering step, from files to the snapshot of `user_clusters`."""

from __future__ import annotations

import multiprocessing
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from bandit.errors import InvalidTableError, NothingUsableError, SnapshotShrinksError, TooManyBadRowsError
from bandit.rewards.feedback import FUTURE_TOLERANCE
from bandit.settings.load import Settings
from feature_repo import names
from tests.conftest import Deployment
from tests.tables_made import DAY, HOUR, NOW, TIME, naive, unit_vectors, write_embeddings, write_history
from training.clustering import cluster as step
from training.clustering.cluster import _ENGAGEMENTS_PER_TASK, Clustered, cluster
from training.features.snapshots import newest_snapshot

ITEMS = [f"i{number:02d}" for number in range(40)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    history: Path
    embeddings: Path


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """A world of 12 users and 40 items; users `stranger` and `zero` know only items without embedding."""
    rng = np.random.default_rng(3)
    rows = [
        (f"u{user:02d}", ITEMS[item], action, NOW - int(age))
        for user in range(12)
        for item, action, age in zip(
            rng.integers(0, 39, 15), rng.choice(["repin", "click", "hide", "impression"], 15), rng.integers(HOUR, 90 * DAY, 15), strict=True
        )
    ]
    rows += [("stranger", "nowhere", "repin", NOW - DAY), ("zero", "nobody", "click", NOW - DAY), ("hater", ITEMS[1], "hide", NOW - DAY)]
    vectors = unit_vectors(40, 8)
    return Files(history=write_history(tmp_path / "h.parquet", rows), embeddings=write_embeddings(tmp_path / "e.parquet", ITEMS, vectors))


def run(settings: Settings, files: Files, *, as_of: int = NOW, now: int = NOW) -> tuple[Clustered, pa.Table]:
    result = cluster(settings, history=files.history, embeddings=files.embeddings, as_of=as_of, now=now)
    return result, pq.read_table(result.file)


def test_twice_gives_the_same_bytes(deployment: Deployment, files: Files) -> None:
    first = Path(run(deployment.settings, files)[0].file).read_bytes()
    assert Path(run(deployment.settings, files)[0].file).read_bytes() == first


def test_one_process_and_two_give_the_same_bytes(deployment: Deployment, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    users = 450
    rows = [
        (f"u{user}", ITEMS[item], "repin", NOW - int(age))
        for user in range(users)
        for item, age in zip(rng.integers(0, 40, 30), rng.integers(HOUR, 90 * DAY, 30), strict=True)
    ]
    assert len(rows) > 3 * _ENGAGEMENTS_PER_TASK  # or nothing is shared out
    files = Files(
        history=write_history(tmp_path / "h.parquet", rows), embeddings=write_embeddings(tmp_path / "e.parquet", ITEMS, unit_vectors(40, 8))
    )
    written = []
    for processes in (1, 2):
        clustering = deployment.settings.clustering.model_copy(update={"processes": processes})
        result, _ = run(deployment.settings.model_copy(update={"clustering": clustering}), files)
        assert result.users == users
        written.append(Path(result.file).read_bytes())
    assert written[0] == written[1]


def test_users_without_usable_history_get_no_row(deployment: Deployment, files: Files) -> None:
    result, table = run(deployment.settings, files)
    assert table[names.JOIN_KEY].to_pylist() == sorted(f"u{user:02d}" for user in range(12))
    assert result.users == 12
    assert result.without_embedding == 2  # stranger's and zero's; the hide is no engagement


USELESS: dict[str, tuple[list[tuple[str, str, str, int]], str]] = {
    "no rows": ([], "no engagement of positive weight"),
    "impressions only": ([("u00", ITEMS[0], "impression", NOW - DAY)], "no engagement of positive weight"),
    "hides only": ([("u00", ITEMS[0], "hide", NOW - DAY)], "no engagement of positive weight"),
    "all of it later": ([("u00", ITEMS[0], "repin", NOW + DAY)], "no engagement of positive weight by `as_of`"),
    "ids that were floats": ([("u00", "17.0", "repin", NOW - DAY)], "its ids are such as '17.0', the embeddings' such as 'i00'"),
}


@pytest.mark.parametrize("name", USELESS)
def test_a_history_that_is_of_no_use_leaves_the_last_snapshot(deployment: Deployment, files: Files, tmp_path: Path, name: str) -> None:
    rows, problem = USELESS[name]
    file = Path(run(deployment.settings, files)[0].file)
    before = file.read_bytes()
    useless = Files(history=write_history(tmp_path / "useless.parquet", rows), embeddings=files.embeddings)
    with pytest.raises(NothingUsableError, match=re.escape(problem)) as raised:
        run(deployment.settings, useless, as_of=NOW + 1, now=NOW + 2 * DAY)
    assert raised.value.file == str(useless.history)
    assert file.read_bytes() == before
    assert newest_snapshot(file.parent, until=2**62) == file
    assert run(deployment.settings, files, as_of=NOW + 1)[0].changed == 0  # and its lineage and members


@pytest.mark.parametrize(("left", "refused"), [(10, False), (9, True)])
def test_a_snapshot_does_not_lose_a_fifth_of_its_users(deployment: Deployment, files: Files, left: int, refused: bool) -> None:
    result, before = run(deployment.settings, files)
    table = pq.read_table(files.history)
    fewer = with_history(files, table.filter(pc.less(table["user_id"], f"u{left:02d}")))
    if refused:
        with pytest.raises(SnapshotShrinksError, match="3 of the 12 users of the last snapshot would go"):
            run(deployment.settings, fewer)
        assert pq.read_table(result.file).equals(before)
        result, _ = run(deployment.change("[intake]\nshrink = 0.25").settings, fewer)
    else:
        result, _ = run(deployment.settings, fewer)
    assert result.users == left


def test_identical_rows_of_a_history_count_once(deployment: Deployment, files: Files) -> None:
    result, expected = run(deployment.settings, files)
    assert result.repeated == 0
    table = pq.read_table(files.history)
    result, found = run(deployment.settings, with_history(files, pa.concat_tables([table, table.slice(3, 50)])))
    assert result.repeated == 50
    assert found.equals(expected)


@pytest.mark.parametrize("length", [20.0, 0.01, 1e-30, 1e30])
def test_embeddings_are_brought_to_unit_length_and_counted(deployment: Deployment, files: Files, tmp_path: Path, length: float) -> None:
    result, expected = run(deployment.settings, files)
    assert result.normalised == 0
    longer = unit_vectors(40, 8)
    longer[:30] *= length
    (deployment.settings.data_path / "topics.npy").unlink()
    result, found = run(
        deployment.settings, Files(history=files.history, embeddings=write_embeddings(tmp_path / "long.parquet", ITEMS, longer))
    )
    assert result.normalised == 30
    assert found[names.CLUSTER_IDS].equals(expected[names.CLUSTER_IDS])


def test_the_row_says_what_the_user_did(deployment: Deployment, tmp_path: Path) -> None:
    rows = [
        ("u", "a", "repin", NOW - 3 * DAY),
        ("u", "b", "click", NOW - 2 * DAY),
        ("u", "a", "click", NOW - DAY),
        ("u", "a", "impression", NOW - HOUR),
        ("u", "b", "hide", NOW - HOUR),
    ]
    files = Files(
        history=write_history(tmp_path / "h.parquet", rows),
        embeddings=write_embeddings(tmp_path / "e.parquet", ["a", "b"], [[1, 0], [0, 1]], topics=[4, 2]),
    )
    _, table = run(deployment.settings, files)
    (row,) = table.to_pylist()
    age = {"a": np.exp(-0.03) + np.exp(-0.01), "b": np.exp(-0.02)}
    assert row[names.CLUSTER_IDS] == ["a", "b"]
    assert row[names.TOPIC_IDS] == [4, 2]
    assert row[names.ITEM_COUNTS] == [1, 1]
    assert row[names.ACTION_TYPES] == ["impression", "repin", "click", "closeup", "hide"]
    assert row[names.ACTION_COUNTS] == [0, 1, 1, 0, 0, 0, 0, 1, 0, 0]
    assert row[names.IMPORTANCE] == pytest.approx([age["a"], age["b"]], rel=1e-12)
    assert row[names.LAST_ACTION_AT] == [NOW - DAY, NOW - 2 * DAY]
    assert row[names.QUERY_ITEMS] == ["a", "b"]
    assert row[names.QUERY_WEIGHTS] == pytest.approx([age["a"], age["b"]], rel=1e-12)
    assert row[names.QUERY_OFFSETS] == [0, 1, 2]
    assert table[names.TIMESTAMP].cast(pa.int64()).to_pylist() == [NOW]


def test_topics_are_fitted_once_and_mean_the_same_afterwards(deployment: Deployment, files: Files, tmp_path: Path) -> None:
    settings = deployment.change("[clustering]\ntopics = 5").settings
    _, first = run(settings, files)
    kept = (settings.data_path / "topics.npy").read_bytes()
    more = np.concatenate([unit_vectors(200, 8, seed=9), unit_vectors(40, 8)])
    again = write_embeddings(tmp_path / "more.parquet", [*(f"n{number}" for number in range(200)), *ITEMS], more)
    _, second = run(settings, Files(history=files.history, embeddings=again))
    assert (settings.data_path / "topics.npy").read_bytes() == kept

    def topic_of(table: pa.Table) -> dict[tuple[str, str], int]:
        return {
            (row[names.JOIN_KEY], cluster_id): topic
            for row in table.to_pylist()
            for cluster_id, topic in zip(row[names.CLUSTER_IDS], row[names.TOPIC_IDS], strict=True)
        }

    assert topic_of(first) == topic_of(second)
    assert set(topic_of(first).values()) == set(range(5))


def test_order_of_the_files_changes_nothing(deployment: Deployment, files: Files, tmp_path: Path) -> None:
    rows, space = pq.read_table(files.history), pq.read_table(files.embeddings)
    _, expected = run(deployment.settings, files)
    rng = np.random.default_rng(5)
    pq.write_table(rows.take(rng.permutation(rows.num_rows)), files.history)
    pq.write_table(space.take(rng.permutation(space.num_rows)), files.embeddings)
    _, found = run(deployment.settings, files)
    assert found[names.CLUSTER_IDS].to_pylist() == expected[names.CLUSTER_IDS].to_pylist()


def test_order_of_the_history_changes_nothing(deployment: Deployment, files: Files) -> None:
    rows = pq.read_table(files.history)
    expected = Path(run(deployment.settings, files)[0].file).read_bytes()
    pq.write_table(rows.take(np.random.default_rng(5).permutation(rows.num_rows)), files.history)
    assert Path(run(deployment.settings, files)[0].file).read_bytes() == expected


def test_topics_of_other_embeddings_are_refused(deployment: Deployment, files: Files, tmp_path: Path) -> None:
    run(deployment.settings, files)
    other = write_embeddings(tmp_path / "other.parquet", ITEMS, unit_vectors(40, 16))
    with pytest.raises(InvalidTableError, match=r"topics\.npy: 8 dimensions, the embeddings have 16"):
        run(deployment.settings, Files(history=files.history, embeddings=other))


def test_a_topic_column_is_used_and_nothing_fitted(deployment: Deployment, files: Files, tmp_path: Path) -> None:
    topics = [100 + number % 7 for number in range(40)]
    vectors = unit_vectors(40, 8)
    labelled = write_embeddings(tmp_path / "labelled.parquet", ITEMS, vectors, topics=topics)
    _, table = run(deployment.settings, Files(history=files.history, embeddings=labelled))
    for row in table.to_pylist():
        assert row[names.TOPIC_IDS] == [topics[ITEMS.index(cluster_id)] for cluster_id in row[names.CLUSTER_IDS]]
    assert not (deployment.settings.data_path / "topics.npy").exists()


def test_embeddings_of_other_widths_are_the_same_embeddings(deployment: Deployment, files: Files, tmp_path: Path) -> None:
    _, expected = run(deployment.settings, files)
    plain = pq.read_table(files.embeddings)
    for kind in (pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float32(), 8)):
        file = tmp_path / "other.parquet"
        pq.write_table(pa.table({"item_id": plain["item_id"].cast(pa.large_string()), "embedding": plain["embedding"].cast(kind)}), file)
        _, found = run(deployment.settings, Files(history=files.history, embeddings=file))
        assert found.equals(expected), kind


def refused(settings: Settings, files: Files, message: str | None = None) -> InvalidTableError:
    """The error that clustering these files raises; nothing may be written then."""
    folder = settings.feature_repo_path / names.USER_CLUSTERS_PATH
    before = {file: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(InvalidTableError, match=message) as raised:
        run(settings, files)
    assert {file: file.read_bytes() for file in folder.iterdir()} == before
    return raised.value


def with_history(files: Files, table: pa.Table) -> Files:
    pq.write_table(table, files.history)
    return files


def replaced(table: pa.Table, column: str, row: int, value: object) -> pa.Table:
    place = table.schema.get_field_index(column)
    values = table[column].to_pylist()
    values[row] = value
    return table.set_column(place, column, pa.array(values, table.schema.field(column).type))


def test_a_history_of_other_types_is_refused_naming_column_and_way_out(deployment: Deployment, files: Files) -> None:
    good = pq.read_table(files.history)
    floats = good.set_column(0, "user_id", pa.array(np.arange(good.num_rows, dtype=float)))
    cases = {
        "missing": (good.drop_columns(["action"]), "action", "missing, expected string"),
        "floats": (floats, "user_id", "has type double, expected string: numbers such as 123.0 are no identifiers"),
        "naive": (naive(good, "occurred_at"), "occurred_at", "has no time zone, expected timestamp[us, tz=UTC]: write it with the zone"),
        "text": (good.set_column(3, "occurred_at", pa.array(["2026-04-01"] * good.num_rows)), "occurred_at", "has type string"),
        "number": (good.set_column(3, "occurred_at", pa.array([NOW] * good.num_rows)), "occurred_at", "has type int64"),
        "twice": (good.append_column("user_id", good["user_id"]), "user_id", "stands 2 times"),
    }
    for name, (table, column, problem) in cases.items():
        error = refused(deployment.settings, with_history(files, table), re.escape(problem))
        assert (error.file, error.column, error.row) == (str(files.history), column, None), name
        assert str(error).startswith(f"{files.history}, column {column!r}: ")


def test_bad_rows_of_a_history_are_put_aside_with_their_reason(deployment: Deployment, files: Files) -> None:
    good = pq.read_table(files.history)
    cases = [
        ("action", "bookmark", "action: unknown action"),
        ("action", None, "action: null"),
        ("user_id", None, "user_id: null"),
        ("user_id", "", "user_id: empty"),
        ("item_id", "a\nb", "item_id: control characters"),
        ("user_id", "\u2028", "user_id: control characters"),
        ("item_id", "\u00e9" * 129, "item_id: longer than 256 bytes"),
        ("occurred_at", NOW + FUTURE_TOLERANCE + 1, "occurred_at: in the future"),
        ("occurred_at", 0, "occurred_at: no time"),
    ]
    for column, value, reason in cases:
        result, table = run(deployment.settings, with_history(files, replaced(good, column, 7, value)))
        assert (result.rejected, table.num_rows) == ({reason: 1}, 12), reason
        (row,) = rejected(deployment.settings)
        assert (row["file"], row["row"], row["reason"]) == (str(files.history), 7, reason)
        assert good["item_id"][7].as_py() in row["content"] or column == "item_id"
    two = replaced(replaced(good, "user_id", 7, ""), "action", 9, "bookmark")
    with pytest.raises(TooManyBadRowsError, match=r"2 of 183 rows .*user_id: empty \(1\), action: unknown action \(1\)"):
        run(deployment.settings, with_history(files, two))
    assert len(rejected(deployment.settings)) == 2


def rejected(settings: Settings) -> list[dict[str, object]]:
    """The rows that were put aside, taken out of their folder."""
    folder = settings.data_path / "rejected"
    rows = pq.read_table(folder).to_pylist()
    for file in folder.iterdir():
        file.unlink()
    return list(rows)


def test_text_that_is_not_utf8_is_a_bad_row(deployment: Deployment, files: Files) -> None:
    good = pq.read_table(files.history)
    raw = pa.array([b"M\xfcller" if row == 5 else value.encode() for row, value in enumerate(good["user_id"].to_pylist())], pa.binary())
    for kind in (pa.string(), pa.binary()):
        column = pa.Array.from_buffers(kind, len(raw), raw.buffers())
        result, table = run(deployment.settings, with_history(files, good.set_column(0, "user_id", column)))
        assert result.rejected == {"user_id: not UTF-8": 1}
        assert table.num_rows == 12
        assert "M\\xfcller" in str(rejected(deployment.settings)[0]["content"])


def test_an_event_within_the_clocks_tolerance_is_accepted(deployment: Deployment, files: Files) -> None:
    table = pq.read_table(files.history)
    result, _ = run(deployment.settings, with_history(files, replaced(table, "occurred_at", 5, NOW + FUTURE_TOLERANCE)))
    assert result.users == 12


def test_bad_embeddings_are_put_aside_with_their_reason(deployment: Deployment, files: Files) -> None:
    vectors = [*unit_vectors(40, 8).tolist(), *unit_vectors(80, 8, seed=1).tolist()]
    ids = [*ITEMS, *(f"n{number}" for number in range(80))]

    def broken(row: int, vector: list[float] | None) -> list[list[float] | None]:
        return [*vectors[:row], vector, *vectors[row + 1 :]]

    nan, infinite, hole = [*vectors[0][:7], float("nan")], [float("-inf"), *vectors[0][1:]], [*vectors[0][:7], None]
    cases: dict[str, tuple[list[str], object]] = {
        "embedding: not finite": (ids, broken(44, nan)),
        "embedding: not finite ": (ids, broken(49, infinite)),
        "embedding: not finite  ": (ids, broken(42, hole)),
        "embedding: all zero": (ids, broken(42, [0.0] * 8)),
        "embedding: another length than the others": (ids, broken(0, vectors[0][:7])),
        "embedding: null": (ids, broken(46, None)),
        "embedding: empty": (ids, broken(47, [])),
        "item_id: stands twice, with other values": ([*ids[:60], ITEMS[3], *ids[61:]], vectors),
        "item_id: empty": ([*ids[:60], "", *ids[61:]], vectors),
    }
    for reason, (items, rows) in cases.items():
        pq.write_table(pa.table({"item_id": items, "embedding": pa.array(rows, pa.list_(pa.float32()))}), files.embeddings)
        result, _ = run(deployment.settings, files)
        assert result.rejected == {reason.strip(): 1}
        assert len(rejected(deployment.settings)) == 1
    pq.write_table(pa.table({"item_id": [*ids, *ids], "embedding": [*vectors, *vectors]}), files.embeddings)
    assert run(deployment.settings, files)[0].rejected == {}
    pq.write_table(pa.table({"item_id": ids, "embedding": [[0.0] * 8] * 120}), files.embeddings)
    refused(deployment.settings, files, "none of 120 rows can be used")


def test_embeddings_of_the_wrong_kind_are_refused(deployment: Deployment, files: Files) -> None:
    good = pq.read_table(files.embeddings)
    cases = {
        "missing": (good.drop_columns(["embedding"]), "missing, expected list"),
        "flat": (good.set_column(1, "embedding", pa.array([1.0] * 40)), "has type double, expected list"),
        "words": (good.set_column(1, "embedding", pa.array([["a"]] * 40)), "has type list<element: string>, expected list"),
        "nobody": (good.slice(0, 0), "no rows, expected at least one item"),
        "objects": (good.set_column(1, "embedding", pa.array([{"values": [1.0]}] * 40)), "write it as a list of numbers"),
    }
    for table, problem in cases.values():
        pq.write_table(table, files.embeddings)
        refused(deployment.settings, files, re.escape(problem))


def test_any_whole_number_is_a_topic_and_null_is_the_unknown_one(deployment: Deployment, files: Files) -> None:
    good = pq.read_table(files.embeddings)
    topics = {
        "null": (pa.array([None, *range(39)], pa.int64()), [-1, *range(39)]),
        "floats of pandas": (pa.array([None, *range(39)], pa.float64()), [-1, *range(39)]),
        "nothing known": (pa.nulls(40), [-1] * 40),
        "negative": (pa.array([-1] * 40, pa.int64()), [-1] * 40),
        "small": (pa.array(range(40), pa.uint8()), list(range(40))),
        "decimals": (pa.array(range(40)).cast(pa.decimal128(38, 0)), list(range(40))),
    }
    for column, expected in topics.values():
        pq.write_table(good.append_column("topic", column), files.embeddings)
        _, table = run(deployment.settings, files)
        for row in table.to_pylist():
            assert row[names.TOPIC_IDS] == [expected[ITEMS.index(cluster_id)] for cluster_id in row[names.CLUSTER_IDS]]
    pq.write_table(good.append_column("topic", pa.array([2**64 - 1 - row for row in range(40)], pa.uint64())), files.embeddings)
    _, table = run(deployment.settings, files)
    hashed = {(item, topic) for row in table.to_pylist() for item, topic in zip(row[names.CLUSTER_IDS], row[names.TOPIC_IDS], strict=True)}
    assert len({topic for _, topic in hashed}) == len({item for item, _ in hashed})
    assert all(0 <= topic == int(float(topic)) for _, topic in hashed)  # policies log them as float64
    pq.write_table(good.append_column("topic", pa.array(["Recipes"] * 40)), files.embeddings)
    assert refused(deployment.settings, files).column == "topic"


def test_bad_files_are_refused_with_processes_started(deployment: Deployment, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "_ENGAGEMENTS_PER_TASK", 1)
    files.embeddings.write_bytes(files.embeddings.read_bytes()[:100])
    refused(deployment.change("[clustering]\nprocesses = 2").settings, files, "not a readable Parquet file")
    assert not multiprocessing.active_children()


def test_files_that_are_no_parquet_files_are_refused(deployment: Deployment, files: Files, tmp_path: Path) -> None:
    absent = tmp_path / "absent.parquet"
    assert refused(deployment.settings, Files(history=absent, embeddings=files.embeddings), "no such file").file == str(absent)
    files.history.write_bytes(files.history.read_bytes()[:100])
    assert refused(deployment.settings, files, "not a readable Parquet file").file == str(files.history)


def test_a_failed_run_leaves_the_last_snapshot(deployment: Deployment, files: Files) -> None:
    result, _ = run(deployment.settings, files)
    before = Path(result.file).read_bytes()
    pq.write_table(naive(pq.read_table(files.history), "occurred_at"), files.history)
    with pytest.raises(InvalidTableError):
        run(deployment.settings, files)
    assert Path(result.file).read_bytes() == before
    assert not list(Path(result.file).parent.glob(".*"))


def test_progress_counts_to_the_number_of_users(deployment: Deployment, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "_ENGAGEMENTS_PER_TASK", 1)
    clustering = deployment.settings.clustering.model_copy(update={"processes": 1})
    settings = deployment.settings.model_copy(update={"clustering": clustering})
    seen: list[tuple[int, int]] = []
    cluster(settings, history=files.history, embeddings=files.embeddings, as_of=NOW, progress=lambda *now: seen.append(now))
    assert seen == [(done, 12) for done in range(1, 13)]


def test_times_in_other_units_are_the_same_times(deployment: Deployment, files: Files) -> None:
    table = pq.read_table(files.history)
    place = table.schema.get_field_index("occurred_at")
    seconds = [int(value.timestamp()) * 1_000_000 for value in table["occurred_at"].to_pylist()]
    table = table.set_column(place, "occurred_at", pa.array(seconds, TIME))
    _, expected = run(deployment.settings, with_history(files, table))
    for kind in (pa.timestamp("ns", "UTC"), pa.timestamp("ms", "America/New_York")):
        _, found = run(deployment.settings, with_history(files, table.set_column(place, "occurred_at", table["occurred_at"].cast(kind))))
        assert found.equals(expected), kind
