"""The clustering step, from files to the snapshot of `user_clusters`."""

from __future__ import annotations

import multiprocessing
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bandit.errors import InvalidTableError
from bandit.rewards.feedback import FUTURE_TOLERANCE
from bandit.settings.load import Settings
from feature_repo import names
from tests.conftest import Deployment
from tests.tables_made import DAY, HOUR, NOW, TIME, naive, unit_vectors, write_embeddings, write_history
from training.clustering import cluster as step
from training.clustering.cluster import _ENGAGEMENTS_PER_TASK, Clustered, cluster

ITEMS = [f"i{number:02d}" for number in range(40)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    history: Path
    embeddings: Path


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """A world of 12 users and 40 items; user `stranger` knows only items without embedding, `zero` only one whose embedding is zero."""
    rng = np.random.default_rng(3)
    rows = [
        (f"u{user:02d}", ITEMS[item], action, NOW - int(age))
        for user in range(12)
        for item, action, age in zip(
            rng.integers(0, 39, 15), rng.choice(["repin", "click", "hide", "impression"], 15), rng.integers(HOUR, 90 * DAY, 15), strict=True
        )
    ]
    rows += [("stranger", "nowhere", "repin", NOW - DAY), ("zero", ITEMS[39], "click", NOW - DAY), ("hater", ITEMS[1], "hide", NOW - DAY)]
    vectors = unit_vectors(40, 8)
    vectors[39] = 0.0
    return Files(history=write_history(tmp_path / "h.parquet", rows), embeddings=write_embeddings(tmp_path / "e.parquet", ITEMS, vectors))


def run(settings: Settings, files: Files) -> tuple[Clustered, pa.Table]:
    result = cluster(settings, history=files.history, embeddings=files.embeddings, as_of=NOW)
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


def test_nobody_with_usable_history_is_an_empty_table(deployment: Deployment, files: Files, tmp_path: Path) -> None:
    history = write_history(tmp_path / "none.parquet", [("stranger", "nowhere", "repin", NOW - DAY)])
    result, table = run(deployment.settings, Files(history=history, embeddings=files.embeddings))
    assert (result.users, result.clusters, table.num_rows) == (0, 0, 0)


def test_an_empty_history_is_an_empty_table(deployment: Deployment, files: Files, tmp_path: Path) -> None:
    history = write_history(tmp_path / "none.parquet", [])
    result, table = run(deployment.settings, Files(history=history, embeddings=files.embeddings))
    assert (result.users, result.engagements, table.num_rows) == (0, 0, 0)


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
    more[-1] = 0.0
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
    target = settings.feature_repo_path / names.USER_CLUSTERS_PATH
    before = target.read_bytes() if target.exists() else None
    with pytest.raises(InvalidTableError, match=message) as raised:
        run(settings, files)
    assert (target.read_bytes() if target.exists() else None) == before
    return raised.value


def with_history(files: Files, table: pa.Table) -> Files:
    pq.write_table(table, files.history)
    return files


def replaced(table: pa.Table, column: str, row: int, value: object) -> pa.Table:
    place = table.schema.get_field_index(column)
    values = table[column].to_pylist()
    values[row] = value
    return table.set_column(place, column, pa.array(values, table.schema.field(column).type))


def test_bad_history_is_refused_naming_the_place(deployment: Deployment, files: Files) -> None:
    good = pq.read_table(files.history)
    late = NOW + FUTURE_TOLERANCE + 1
    cases = {
        "missing": (good.drop_columns(["action"]), "action", None, "missing, expected string"),
        "type": (good.set_column(1, "item_id", pa.array(range(good.num_rows))), "item_id", None, "has type int64, expected string"),
        "action": (replaced(good, "action", 7, "bookmark"), "action", 7, "unknown action 'bookmark', expected one of"),
        "null": (replaced(good, "user_id", 3, None), "user_id", 3, "null, expected a value"),
        "naive": (naive(good, "occurred_at"), "occurred_at", None, "no time zone"),
        "date": (good.set_column(3, "occurred_at", pa.array(["2026-04-01"] * good.num_rows)), "occurred_at", None, "has type string"),
        "future": (replaced(good, "occurred_at", 5, late), "occurred_at", 5, "is in the future"),
    }
    for name, (table, column, row, problem) in cases.items():
        error = refused(deployment.settings, with_history(files, table), problem)
        assert (error.file, error.column, error.row) == (str(files.history), column, row), name
        assert str(files.history) in str(error)
        assert f"column {column!r}" in str(error)
        assert row is None or f"row {row}" in str(error)


def test_an_event_within_the_clocks_tolerance_is_accepted(deployment: Deployment, files: Files) -> None:
    table = pq.read_table(files.history)
    result, _ = run(deployment.settings, with_history(files, replaced(table, "occurred_at", 5, NOW + FUTURE_TOLERANCE)))
    assert result.users == 12


def test_bad_embeddings_are_refused_naming_the_place(deployment: Deployment, files: Files) -> None:
    vectors = unit_vectors(40, 8).tolist()

    def broken(row: int, vector: list[float] | None) -> list[list[float] | None]:
        return [*vectors[:row], vector, *vectors[row + 1 :]]

    nan, infinite = [*vectors[0][:7], float("nan")], [float("-inf"), *vectors[0][1:]]
    cases: dict[str, tuple[list[str], object, str, int | None, str]] = {
        "nan": (ITEMS, broken(4, nan), "embedding", 4, "NaN or infinite"),
        "infinite": (ITEMS, broken(39, infinite), "embedding", 39, "NaN or infinite"),
        "hole": (ITEMS, broken(2, [*vectors[0][:7], None]), "embedding", 2, "NaN or infinite"),  # type: ignore[list-item]
        "short": (ITEMS, broken(11, vectors[0][:7]), "embedding", 11, "length 7, expected 8"),
        "null": (ITEMS, broken(6, None), "embedding", 6, "null, expected a value"),
        "empty": (ITEMS, [[]] * 40, "embedding", 0, "length 0"),
        "twice": ([*ITEMS[:20], ITEMS[3], *ITEMS[21:]], vectors, "item_id", 20, f"item '{ITEMS[3]}' stands twice"),
    }
    for name, (ids, rows, column, row, problem) in cases.items():
        pq.write_table(pa.table({"item_id": ids, "embedding": pa.array(rows, pa.list_(pa.float32()))}), files.embeddings)
        error = refused(deployment.settings, files, problem)
        assert (error.file, error.column, error.row) == (str(files.embeddings), column, row), name


def test_embeddings_of_the_wrong_kind_are_refused(deployment: Deployment, files: Files) -> None:
    good = pq.read_table(files.embeddings)
    cases = {
        "missing": (good.drop_columns(["embedding"]), "missing, expected list"),
        "flat": (good.set_column(1, "embedding", pa.array([1.0] * 40)), "has type double, expected list"),
        "words": (good.set_column(1, "embedding", pa.array([["a"]] * 40)), "has type list<element: string>, expected list"),
        "nobody": (good.slice(0, 0), "no rows, expected at least one item"),
    }
    for table, problem in cases.values():
        pq.write_table(table, files.embeddings)
        refused(deployment.settings, files, re.escape(problem))


def test_a_topic_column_that_is_no_topic_is_refused(deployment: Deployment, files: Files) -> None:
    good = pq.read_table(files.embeddings)
    topics = {
        "null": pa.array([1, None, *([2] * 38)], pa.int64()),
        "words": pa.array(["Recipes"] * 40),
        "negative": pa.array([-1] * 40, pa.int64()),
    }
    for column in topics.values():
        pq.write_table(good.append_column("topic", column), files.embeddings)
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
