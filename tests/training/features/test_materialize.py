"""What goes online is decided by generations: no clock, and no note of Feast's, keeps a newer row away."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
import pyarrow.parquet as pq
import pytest
import redis

from bandit.settings.load import load_settings
from feature_repo import names
from feature_repo.store import open_store
from serving import QuerySelector
from tests.conftest import Deployment
from tests.tables_made import DAY, HOUR, NOW, feedback, unit_vectors, write_embeddings, write_feedback, write_history
from training.clustering.cluster import cluster
from training.features.feature_store import apply
from training.features.fold import fold
from training.features.materialize import materialize
from training.features.snapshots import newest_generation, snapshot_files
from training.local_redis import redis_binary

ITEMS = 20


def clustered(deployment: Deployment, users: int, *, as_of: int) -> None:
    rows = [(f"u{user}", f"i{(5 * user + step) % ITEMS}", "repin", as_of - step * DAY) for user in range(users) for step in range(1, 7)]
    history = write_history(deployment.folder / "history.parquet", rows)
    embeddings = write_embeddings(deployment.folder / "items.parquet", [f"i{item}" for item in range(ITEMS)], unit_vectors(ITEMS, 8))
    cluster(deployment.settings, history=history, embeddings=embeddings, as_of=as_of)


def folded(deployment: Deployment, users: int, *, as_of: int, name: str = "a") -> None:
    events = [feedback(f"{name}{user}", at=as_of - HOUR, user_id=f"u{user}", cluster_id="c") for user in range(users)]
    write_feedback(deployment.settings, events, name=name)
    fold(deployment.settings, as_of=as_of, now=NOW)


def online(deployment: Deployment, user: str, feature: str = f"{names.USER_CLUSTERS}:{names.CLUSTER_IDS}") -> Any:
    store = open_store(deployment.settings.feature_repo_path, deployment.settings.redis_url)
    row = store.get_online_features(features=[feature], entity_rows=[{names.JOIN_KEY: user}]).to_dict()
    return row[feature.partition(":")[2]][0]


def test_an_end_in_the_future_that_feast_noted_keeps_nothing_away(deployment: Deployment) -> None:
    clustered(deployment, 5, as_of=NOW - DAY)
    apply(deployment.settings).materialize_incremental(datetime.now(UTC) + timedelta(hours=2))
    clustered(deployment, 6, as_of=NOW)
    assert materialize(deployment.settings, until=NOW).written == {names.USER_CLUSTERS: 6, names.CLUSTER_REWARDS: 0}
    assert online(deployment, "u5")


def test_snapshots_of_an_earlier_time_than_the_run_go_online(deployment: Deployment) -> None:
    """A scheduler's logical dates: each day's snapshot bears the day before."""
    for day in range(4):
        clustered(deployment, 5 + day, as_of=NOW - (5 - day) * DAY)
        assert materialize(deployment.settings, until=NOW - (4 - day) * DAY).rows == 5 + day
        assert online(deployment, f"u{4 + day}")


def test_an_online_store_that_lost_its_rows_is_filled(deployment: Deployment) -> None:
    clustered(deployment, 5, as_of=NOW - DAY)
    folded(deployment, 5, as_of=NOW)
    assert materialize(deployment.settings, until=NOW).rows == 10
    assert materialize(deployment.settings, until=NOW).rows == 0
    deployment.redis.flushdb()
    again = materialize(deployment.settings, until=NOW)
    assert (again.rows, again.missing) == (10, {names.USER_CLUSTERS: 5, names.CLUSTER_REWARDS: 5})
    one = next(iter(key for key in deployment.redis.scan_iter() if b"u3" in key))
    deployment.redis.delete(one)
    assert materialize(deployment.settings, until=NOW).rows == 2


def test_rows_of_an_older_generation_are_replaced_whatever_their_time(deployment: Deployment) -> None:
    """A backup of Redis was restored, or rows were written with a typed year of 2099."""
    clustered(deployment, 3, as_of=NOW - DAY)
    materialize(deployment.settings, until=NOW)
    backup = {key: deployment.redis.dump(key) for key in deployment.redis.scan_iter()}
    clustered(deployment, 3, as_of=NOW)
    materialize(deployment.settings, until=NOW)
    newest = online(deployment, "u1", f"{names.USER_CLUSTERS}:{names.CLUSTERS_GENERATION}")
    for key, value in backup.items():
        assert value is not None
        deployment.redis.restore(key, 0, value, replace=True)
        deployment.redis.hset(key, f"_ts:{names.USER_CLUSTERS}", b"\x08\x80\xa6\x9d\xb0\x0f")  # the time of the row: the year 2099
    assert materialize(deployment.settings, until=NOW).written[names.USER_CLUSTERS] == 3
    assert online(deployment, "u1", f"{names.USER_CLUSTERS}:{names.CLUSTERS_GENERATION}") == newest == 2


def test_everything_is_written_when_asked(deployment: Deployment) -> None:
    clustered(deployment, 4, as_of=NOW)
    materialize(deployment.settings, until=NOW)
    assert materialize(deployment.settings, until=NOW, everything=True).rows == 4


def test_what_is_online_and_newer_than_the_disk_is_counted(deployment: Deployment) -> None:
    clustered(deployment, 4, as_of=NOW - DAY)
    clustered(deployment, 4, as_of=NOW)
    materialize(deployment.settings, until=NOW)
    assert materialize(deployment.settings, until=NOW - HOUR).older == {names.USER_CLUSTERS: 4, names.CLUSTER_REWARDS: 0}


def test_a_repeated_step_changes_no_byte_and_no_generation(deployment: Deployment) -> None:
    clustered(deployment, 3, as_of=NOW)
    folder = deployment.settings.feature_repo_path / names.USER_CLUSTERS_PATH
    before = {file: file.read_bytes() for file in snapshot_files(folder)}
    clustered(deployment, 3, as_of=NOW)
    assert {file: file.read_bytes() for file in snapshot_files(folder)} == before
    clustered(deployment, 4, as_of=NOW)
    assert newest_generation(folder) == 2


def test_a_user_who_left_gets_an_empty_selection(deployment: Deployment) -> None:
    clustered(deployment, 6, as_of=NOW - DAY)
    materialize(deployment.settings, until=NOW)
    clustered(deployment, 5, as_of=NOW)
    materialize(deployment.settings, until=NOW)
    with QuerySelector.open(deployment.settings_file) as selector:
        assert selector.select("u2", 2).queries
        left = selector.select("u5", 2)
    assert (list(left.queries), left.degraded) == ([], False)
    clustered(deployment, 6, as_of=NOW + HOUR)
    materialize(deployment.settings, until=NOW + HOUR)
    assert online(deployment, "u5")


def test_a_point_in_time_join_answers_for_a_past_time_what_it_answered_then(deployment: Deployment) -> None:
    times = [NOW - 3 * DAY, NOW - 2 * DAY, NOW - DAY]
    entity = pd.DataFrame({names.JOIN_KEY: ["u1"] * 3, "event_timestamp": [datetime.fromtimestamp(at / 1e6, UTC) for at in times]})
    feature = f"{names.USER_CLUSTERS}:{names.CLUSTERS_GENERATION}"
    for number, moment in enumerate(times, 1):
        clustered(deployment, 1 + number, as_of=moment)
        store = apply(deployment.settings)
        past = store.get_historical_features(entity_df=entity, features=[feature]).to_df().sort_values("event_timestamp")
        assert past[names.CLUSTERS_GENERATION].tolist() == [*range(1, number + 1), *[number] * (3 - number)]


def test_snapshots_are_kept_as_long_as_the_settings_say(deployment: Deployment) -> None:
    short = deployment.change("[retention]\nsnapshot_days = 2")
    for day in range(6):
        clustered(short, 2, as_of=NOW - (6 - day) * DAY)
    times = [file.stem for file in snapshot_files(short.settings.feature_repo_path / names.USER_CLUSTERS_PATH)]
    assert times[0] == "20250428T000000.000000"  # two days before the last, which a join for that moment asks for
    assert len(times) == 3


def test_the_single_file_of_before_becomes_the_first_snapshot(deployment: Deployment) -> None:
    clustered(deployment, 3, as_of=NOW - DAY)
    folder = deployment.settings.feature_repo_path / names.USER_CLUSTERS_PATH
    (file,) = (file for file in snapshot_files(folder) if file.name != "empty.parquet")
    old = pq.read_table(file).drop_columns([names.CLUSTERS_GENERATION])
    shutil.rmtree(folder)
    pq.write_table(old, folder.with_suffix(".parquet"))
    assert materialize(deployment.settings, until=NOW).rows == 3
    assert [kept.name for kept in snapshot_files(folder)] == [file.name]


def test_the_feature_service_works_as_it_is_shipped(deployment: Deployment) -> None:
    clustered(deployment, 2, as_of=NOW - DAY)
    folded(deployment, 2, as_of=NOW)
    materialize(deployment.settings, until=NOW)
    store = open_store(deployment.settings.feature_repo_path, deployment.settings.redis_url)
    row = store.get_online_features(features=store.get_feature_service(names.SERVICE), entity_rows=[{names.JOIN_KEY: "u1"}]).to_dict()
    assert set(row) == {names.JOIN_KEY, *names.columns(names.USER_CLUSTERS), *names.columns(names.CLUSTER_REWARDS)}
    assert row[names.AS_OF] == [NOW]


def test_a_registry_in_sql_is_passed_on(deployment: Deployment) -> None:
    yaml = deployment.settings.feature_repo_path / "feature_store.yaml"
    url = f"sqlite:///{deployment.folder}/registry_sql.db"
    yaml.write_text(yaml.read_text().replace("  path: data/registry.db", f"  registry_type: sql\n  path: {url}"))
    clustered(deployment, 2, as_of=NOW)
    assert materialize(deployment.settings, until=NOW).rows == 2
    assert (deployment.folder / "registry_sql.db").stat().st_size


@contextmanager
def server(folder: Path, *options: str) -> Iterator[None]:
    command = [redis_binary(), *options, "--save", "", "--dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


@pytest.mark.parametrize("form", ["password with a comma", "unix socket", "IPv6"])
def test_whatever_the_library_reads_from_is_written_to(deployment: Deployment, tmp_path: Path, form: str, free_port: int) -> None:
    socket = f"{tmp_path}/s"
    options, url = {
        "password with a comma": (
            ["--port", str(free_port), "--bind", "127.0.0.1", "--requirepass", "p,w=1"],
            f"redis://:{quote('p,w=1', safe='')}@127.0.0.1:{free_port}/3",
        ),
        "unix socket": (["--port", "0", "--unixsocket", socket], f"unix://{socket}?db=3"),
        "IPv6": (["--port", str(free_port), "--bind", "::1"], f"redis://[::1]:{free_port}/3"),
    }[form]
    with server(tmp_path, *options):
        client = redis.Redis.from_url(url)
        for _ in range(100):
            try:
                client.ping()
                break
            except redis.ConnectionError:
                time.sleep(0.05)
        deployment.settings_file.write_text(deployment.settings_file.read_text().replace(deployment.settings.redis_url, url))
        there = Deployment(folder=deployment.folder, settings=load_settings(deployment.settings_file))
        clustered(there, 2, as_of=NOW)
        assert materialize(there.settings, until=NOW).rows == 2
        assert client.dbsize() == 2
