"""The Feast repository: Feast's own commands and our steps write the same, and what is served is what is trained on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureView
from feast.infra.online_stores.redis import RedisOnlineStore
from feast.types import Array, Float64, Int64, String

from bandit.errors import FeatureStoreError
from bandit.records import Feedback
from feature_repo import names
from feature_repo.definitions import objects
from feature_repo.store import open_store
from serving.features.reader import FeatureReader
from tests.conftest import Deployment
from tests.tables_made import (
    DAY,
    HOUR,
    NOW,
    decision,
    feedback,
    unit_vectors,
    write_decisions,
    write_embeddings,
    write_feedback,
    write_history,
)
from training.clustering.cluster import cluster
from training.features.feature_store import apply
from training.features.fold import fold
from training.features.materialize import materialize

USERS = [f"u{number}" for number in range(8)]
CLUSTERED, FIRST, SECOND = NOW - 3 * DAY, NOW - 2 * DAY, NOW - DAY
KINDS = {
    Array(String): pa.list_(pa.string()),
    Array(Float64): pa.list_(pa.float64()),
    Array(Int64): pa.list_(pa.int64()),
    String: pa.string(),
    Int64: pa.int64(),
}


def events_of(users: list[str], name: str, *, until: int) -> list[Feedback]:
    return [
        feedback(
            f"{name}{user}{step}",
            at=until - step * HOUR,
            user_id=user,
            cluster_id=f"c{step % 3}",
            action="repin" if step % 4 == 0 else "impression",
        )
        for user in users
        for step in range(1, 9)
    ]


@pytest.fixture
def world(deployment: Deployment) -> Deployment:
    """Clustered users, one snapshot of rewards for all of them and a later one for the first three."""
    settings, folder = deployment.settings, deployment.folder
    rows = [
        (user, f"i{(5 * number + step) % 20}", "repin", CLUSTERED - step * DAY) for number, user in enumerate(USERS) for step in range(1, 7)
    ]
    history = write_history(folder / "history.parquet", rows)
    embeddings = write_embeddings(folder / "embeddings.parquet", [f"i{number}" for number in range(20)], unit_vectors(20, 8))
    cluster(settings, history=history, embeddings=embeddings, as_of=CLUSTERED)
    write_feedback(settings, events_of(USERS, "a", until=FIRST), name="a")
    write_decisions(settings, [decision(number, at=FIRST - HOUR, user_id=user, drawn=[("c1", "q")]) for number, user in enumerate(USERS)])
    fold(settings, as_of=FIRST, now=NOW)
    write_feedback(settings, events_of(USERS[:3], "b", until=SECOND), name="b")
    assert fold(settings, as_of=SECOND, now=NOW).users == 3
    return deployment


def parquet_rows(deployment: Deployment, view: str, *, until: int = NOW) -> dict[str, dict[str, Any]]:
    """Newest row of each user in the files of a view."""
    path = {names.USER_CLUSTERS: names.USER_CLUSTERS_PATH, names.CLUSTER_REWARDS: names.CLUSTER_REWARDS_PATH}[view]
    table = pq.read_table(deployment.settings.feature_repo_path / path)
    moments = table[names.TIMESTAMP].cast(pa.int64()).to_pylist()
    rows = sorted(zip(moments, table.to_pylist(), strict=True), key=lambda pair: pair[0])
    return {row[names.JOIN_KEY]: row for moment, row in rows if moment <= until}


def features_of(view: str) -> list[str]:
    (found,) = (each for each in objects(Path()) if isinstance(each, FeatureView) and each.name == view)
    return [field.name for field in found.schema if field.name != names.JOIN_KEY]


def online_rows(deployment: Deployment, view: str, users: list[str]) -> dict[str, dict[str, Any]]:
    """The same rows through Feast's public read."""
    store = open_store(deployment.settings.feature_repo_path, deployment.settings.redis_url)
    columns = features_of(view)
    read = store.get_online_features(
        features=[f"{view}:{name}" for name in columns], entity_rows=[{names.JOIN_KEY: user} for user in users]
    )
    content = read.to_dict()
    return {user: {name: content[name][place] for name in columns} for place, user in enumerate(content[names.JOIN_KEY])}


def hashes(deployment: Deployment) -> dict[bytes, dict[bytes, bytes]]:
    """What is in Redis, to the byte."""
    client = deployment.redis
    return {key: client.hgetall(key) for key in client.scan_iter() if client.type(key) == b"hash"}


def assert_online_equals_parquet(deployment: Deployment) -> None:
    for view in (names.USER_CLUSTERS, names.CLUSTER_REWARDS):
        expected, found = parquet_rows(deployment, view), online_rows(deployment, view, USERS)
        assert set(expected) == set(USERS)
        for user in USERS:
            assert found[user] == {name: expected[user][name] for name in features_of(view)}, (view, user)


def feast(deployment: Deployment, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Feast's own command line, from inside the folder, as its documentation says."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["feast", *arguments],
        cwd=deployment.settings.feature_repo_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def address(deployment: Deployment) -> None:
    """Put the test's Redis into the yaml: Feast's command line knows nothing of our settings."""
    file = deployment.settings.feature_repo_path / "feature_store.yaml"
    server = urlsplit(deployment.settings.redis_url)
    wanted = f'connection_string: "{server.netloc},db={server.path.strip("/")}"'
    text, changed = re.subn(r'connection_string: "[^"]*"', wanted, file.read_text())
    assert changed == 1
    file.write_text(text)


def test_feasts_commands_and_our_step_write_the_same(world: Deployment) -> None:
    address(world)
    applied = feast(world, "apply")
    assert applied.returncode == 0, applied.stderr
    store = open_store(world.settings.feature_repo_path, world.settings.redis_url)
    assert {view.name for view in store.list_feature_views()} == {names.USER_CLUSTERS, names.CLUSTER_REWARDS}
    assert [service.name for service in store.list_feature_services()] == [names.SERVICE]
    now = datetime.now(UTC).replace(tzinfo=None).isoformat(timespec="seconds")
    done = feast(world, "materialize-incremental", now)
    assert done.returncode == 0, done.stderr
    assert_online_equals_parquet(world)
    written = hashes(world)
    assert len(written) == len(USERS)

    assert materialize(world.settings, until=NOW).rows == 0  # Feast's command noted what it did, in the registry that we share
    world.redis.flushdb()
    (world.settings.feature_repo_path / "data" / "registry.db").unlink()
    assert materialize(world.settings, until=NOW).rows == len(USERS) + len(USERS)
    assert hashes(world) == written


def test_our_step_writes_what_the_files_hold(world: Deployment) -> None:
    materialize(world.settings, until=NOW)
    assert_online_equals_parquet(world)


def test_rows_are_written_once_and_only_up_to_the_time_that_is_asked_for(world: Deployment) -> None:
    assert materialize(world.settings, until=CLUSTERED - 1).rows == 0
    assert materialize(world.settings, until=CLUSTERED).rows == 8
    assert online_rows(world, names.CLUSTER_REWARDS, ["u0"])["u0"][names.REWARDED_CLUSTERS] is None
    assert materialize(world.settings, until=FIRST).rows == 8
    assert online_rows(world, names.CLUSTER_REWARDS, ["u0"])["u0"][names.AS_OF] == FIRST
    assert materialize(world.settings, until=FIRST).rows == 0
    assert materialize(world.settings, until=SECOND).rows == 3
    found = online_rows(world, names.CLUSTER_REWARDS, USERS)
    assert {user: row[names.AS_OF] for user, row in found.items()} == {user: SECOND if user in USERS[:3] else FIRST for user in USERS}
    assert materialize(world.settings, until=NOW).rows == 0


def test_nothing_clustered_or_folded_yet_is_no_error(deployment: Deployment) -> None:
    assert materialize(deployment.settings, until=NOW).rows == 0
    assert deployment.redis.dbsize() == 0


def test_feasts_own_materialize_works_before_the_first_fold(deployment: Deployment) -> None:
    rows = [("u", "a", "repin", CLUSTERED)]
    history = write_history(deployment.folder / "h.parquet", rows)
    cluster(
        deployment.settings, history=history, embeddings=write_embeddings(deployment.folder / "e.parquet", ["a"], [[1.0]]), as_of=CLUSTERED
    )
    apply(deployment.settings).materialize_incremental(datetime.fromtimestamp(NOW / 1e6, UTC))
    assert online_rows(deployment, names.USER_CLUSTERS, ["u"])["u"][names.CLUSTER_IDS] == ["a"]


def test_past_features_are_those_that_were_served(world: Deployment) -> None:
    """No skew: the point-in-time join gives, at any past moment, the row that was online then."""
    served = {}
    for moment in (FIRST, SECOND):
        materialize(world.settings, until=moment)
        served[moment] = online_rows(world, names.CLUSTER_REWARDS, USERS)
    assert served[FIRST] != served[SECOND]
    asked = {FIRST - 1: None, FIRST: FIRST, FIRST + 1: FIRST, SECOND - 1: FIRST, SECOND: SECOND, NOW: SECOND}
    entities = pd.DataFrame(
        [(user, datetime.fromtimestamp(0, UTC) + timedelta(microseconds=moment)) for moment in asked for user in USERS],
        columns=[names.JOIN_KEY, "event_timestamp"],
    )
    columns = features_of(names.CLUSTER_REWARDS)
    store = open_store(world.settings.feature_repo_path, world.settings.redis_url)
    past = store.get_historical_features(entity_df=entities, features=[f"{names.CLUSTER_REWARDS}:{name}" for name in columns]).to_arrow()
    assert past.num_rows == len(entities)
    moments = past["event_timestamp"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_pylist()
    seen = set()
    for moment, row in zip(moments, past.select([names.JOIN_KEY, *columns]).to_pylist(), strict=True):
        user, then = row.pop(names.JOIN_KEY), asked[moment]
        seen.add((user, moment))
        assert row == (served[then][user] if then is not None else dict.fromkeys(columns)), (user, moment)
    assert len(seen) == len(entities)


def test_reading_goes_on_while_materializing(world: Deployment) -> None:
    materialize(world.settings, until=SECOND)
    moments = [SECOND + step * HOUR for step in range(1, 6)]
    for moment in moments:
        write_feedback(world.settings, events_of(USERS, str(moment), until=moment), name=str(moment))
        assert fold(world.settings, as_of=moment, now=NOW).users == len(USERS)
    reader = FeatureReader(world.settings.feature_repo_path, world.settings.redis_url, timeout=10.0)
    public = open_store(world.settings.feature_repo_path, world.settings.redis_url)
    before, _ = reader.read("u0")
    assert before is not None
    written: list[int | BaseException] = []

    def write() -> None:
        try:
            written.extend(materialize(world.settings, until=moment).rows for moment in moments)
        except BaseException as error:
            written.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    times = []
    while writer.is_alive():
        profile, rewards = reader.read("u0")
        assert profile is not None
        assert rewards is not None
        assert profile.cluster_ids == before.cluster_ids
        times.append(rewards.as_of)
        answer = public.get_online_features(features=[f"{names.CLUSTER_REWARDS}:{names.AS_OF}"], entity_rows=[{names.JOIN_KEY: "u0"}])
        times.append(answer.to_dict()[names.AS_OF][0])
    writer.join()
    assert written == [len(USERS)] * len(moments)
    assert len(times) > 20
    assert set(times) <= {SECOND, *moments}
    assert times == sorted(times)  # once the newer row was seen, the older never comes back
    assert reader.read("u0")[1].as_of == moments[-1]  # type: ignore[union-attr]


def feasts_own(world: Deployment, until: int) -> None:
    """Feast's own step, which notes in the registry what it does."""
    moments = [datetime.fromtimestamp(at / 1e6, UTC) for at in (0, until)]
    apply(world.settings).materialize(*moments, feature_views=[names.CLUSTER_REWARDS])


def test_who_opens_the_store_while_a_view_is_materializing_is_served(world: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """feast #6780: without `serve_features_while_materializing`, a view is refused while its registry entry says MATERIALIZING."""
    feasts_own(world, FIRST)
    write = RedisOnlineStore.online_write_batch
    states, seen = [], []

    def look() -> None:
        store = open_store(world.settings.feature_repo_path, world.settings.redis_url)
        states.append(store.get_feature_view(names.CLUSTER_REWARDS).state.name)
        seen.append(online_rows(world, names.CLUSTER_REWARDS, ["u0"])["u0"][names.AS_OF])
        _, rewards = FeatureReader(world.settings.feature_repo_path, world.settings.redis_url, timeout=10.0).read("u0")
        seen.append(rewards.as_of if rewards else None)

    def watched(*arguments: Any, **options: Any) -> None:
        look()
        write(*arguments, **options)
        look()

    monkeypatch.setattr(RedisOnlineStore, "online_write_batch", watched)
    feasts_own(world, SECOND)
    assert set(states) == {"MATERIALIZING"}
    assert seen == [FIRST, FIRST, SECOND, SECOND]


def test_files_hold_every_feature_in_the_type_that_the_definitions_name(world: Deployment) -> None:
    paths = {names.USER_CLUSTERS: names.USER_CLUSTERS_PATH, names.CLUSTER_REWARDS: names.CLUSTER_REWARDS_PATH}
    for view in objects(world.settings.feature_repo_path):
        if isinstance(view, FeatureView):
            schema = pq.read_table(world.settings.feature_repo_path / paths.pop(view.name)).schema
            assert schema.field(names.TIMESTAMP).type == pa.timestamp("us")
            for field in view.schema:
                assert schema.field(field.name).type == KINDS[field.dtype], (view.name, field.name)
    assert not paths


def test_a_folder_without_a_feature_store_is_said(tmp_path: Path) -> None:
    with pytest.raises(FeatureStoreError, match=r"feature_store\.yaml: no such file; `query-rewards init` writes one"):
        open_store(tmp_path, "redis://127.0.0.1:6379/0")


def test_applying_twice_is_applying_once(deployment: Deployment) -> None:
    for _ in range(2):
        store = apply(deployment.settings)
        assert sorted(view.name for view in store.list_feature_views()) == sorted([names.USER_CLUSTERS, names.CLUSTER_REWARDS])


def test_feasts_client_is_ours(deployment: Deployment) -> None:
    client = open_store(deployment.settings.feature_repo_path, "redis://user:p%40ss@host:1/2", timeout=0.05).provider.online_store._client
    options = client.get_connection_kwargs()
    assert {name: options[name] for name in ("host", "port", "db", "username", "password", "socket_timeout")} == {
        "host": "host",
        "port": 1,
        "db": 2,
        "username": "user",
        "password": "p@ss",
        "socket_timeout": 0.05,
    }
    assert client.get_retry().get_retries() == 0


ELSEWHERE = """
import json, sys
from datetime import UTC, datetime, timedelta
import pandas as pd
from bandit.settings.load import load_settings
from feature_repo import names
from feature_repo.store import open_store
from serving.features.reader import FeatureReader
from training.features.materialize import materialize
from training.features.fold import fold
from training.models.join import join
from training.local_redis import local_redis

settings = load_settings(sys.argv[1])
now = int(sys.argv[2])
fold(settings, as_of=now, now=now)
joined = join(settings, as_of=now)
rows = materialize(settings, until=now).rows
profile, rewards = FeatureReader(settings.feature_repo_path, settings.redis_url, timeout=10.0).read("u0")
entities = pd.DataFrame({"user_id": ["u0"], "event_timestamp": [datetime.fromtimestamp(0, UTC) + timedelta(microseconds=now)]})
store = open_store(settings.feature_repo_path, settings.redis_url)
past = store.get_historical_features(entity_df=entities, features=["cluster_rewards:as_of"]).to_df()
sums = [f"{value:.10g}" for value in rewards.sums.impressions_session]
print(json.dumps({"rows": rows, "as_of": rewards.as_of, "sums": sums, "past": int(past["as_of"][0]), "joined": joined.rows}))
"""


def test_the_machines_time_zone_changes_nothing(world: Deployment) -> None:
    more = [feedback("new", at=NOW - HOUR, user_id="u0", cluster_id="c0")]
    write_feedback(world.settings, more, name="c")
    found = {}
    snapshot = world.settings.feature_repo_path / names.CLUSTER_REWARDS_PATH / "20250501T000000.000000.parquet"
    for zone in ("UTC", "America/New_York"):
        world.redis.flushdb()
        (world.settings.feature_repo_path / "data" / "registry.db").unlink(missing_ok=True)
        snapshot.unlink(missing_ok=True)
        done = subprocess.run(
            [sys.executable, "-c", ELSEWHERE, str(world.settings_file), str(NOW)],
            env={**os.environ, "TZ": zone},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        examples = (world.settings.data_path / "examples.parquet").read_bytes()
        found[zone] = (json.loads(done.stdout), pq.read_table(snapshot, columns=[names.JOIN_KEY, names.TIMESTAMP]).to_pylist(), examples)
    assert found["UTC"] == found["America/New_York"]
    content = found["UTC"][0]
    assert (content["rows"], content["as_of"], content["past"], content["joined"]) == (16, NOW, NOW, 8)
