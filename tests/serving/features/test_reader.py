"""The reader against Feast's own public read: it uses methods of the pinned version that Feast does not promise."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import python_values_to_proto_values

from bandit.errors import DependencyUnavailableError, FeatureStoreError
from bandit.types import SUM_NAMES, ClusterRewards, Profile
from feature_repo import names
from feature_repo.store import open_store
from serving.features.reader import FeatureReader
from tests.conftest import Deployment
from tests.served_world import AS_OF, EMPTY, ITEMS, QUIET, REWARDED, UNKNOWN, Served
from tests.tables_made import NOW

_CLUSTERS, _REWARDS = ([column.name for column in names.served(view)] for view in (names.USER_CLUSTERS, names.CLUSTER_REWARDS))


@pytest.fixture
def reader(served: Served) -> FeatureReader:
    return FeatureReader(served.folder / "feature_repo", served.redis_url, timeout=5.0)


def publicly(served: Served, view: str, columns: list[str], user: str) -> dict[str, Any]:
    store = open_store(served.folder / "feature_repo", served.redis_url)
    read = store.get_online_features(features=[f"{view}:{name}" for name in columns], entity_rows=[{names.JOIN_KEY: user}]).to_dict()
    return {name: read[name][0] for name in columns}


def plainly(record: Profile | ClusterRewards, columns: list[str]) -> dict[str, Any]:
    """The record as Feast would say it: flat lists."""
    values = {name: getattr(record.sums if name in names.SUMS else record, name) for name in columns}
    return {name: value.ravel().tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}


def test_every_field_is_read() -> None:
    assert {field.name for field in dataclasses.fields(Profile)} == set(_CLUSTERS)
    assert {name for name in _REWARDS if name not in names.SUMS} == {names.AS_OF, names.REWARDED_CLUSTERS}
    assert {field.name for field in dataclasses.fields(ClusterRewards)} == {"as_of", "cluster_ids", "sums"}
    assert names.SUMS == SUM_NAMES


@pytest.mark.parametrize("user", REWARDED)
def test_reads_what_feast_reads(served: Served, reader: FeatureReader, user: str) -> None:
    profile, rewards = reader.read(user)
    assert profile is not None
    assert rewards is not None
    assert (len(profile), len(rewards.cluster_ids), rewards.as_of) == (len(ITEMS), len(ITEMS), AS_OF)
    assert plainly(profile, _CLUSTERS) == publicly(served, names.USER_CLUSTERS, _CLUSTERS, user)
    online = publicly(served, names.CLUSTER_REWARDS, _REWARDS, user)
    assert online.pop(names.REWARDED_CLUSTERS) == rewards.cluster_ids
    assert plainly(rewards, list(online)) == online


def test_users_differ(reader: FeatureReader) -> None:
    assert len({tuple(reader.read(user)[0].query_weights) for user in REWARDED}) == len(REWARDED)  # type: ignore[union-attr]


def test_a_user_without_rewards_has_clusters_only(served: Served, reader: FeatureReader) -> None:
    profile, rewards = reader.read(QUIET)
    assert rewards is None
    assert profile is not None
    assert plainly(profile, _CLUSTERS) == publicly(served, names.USER_CLUSTERS, _CLUSTERS, QUIET)
    assert set(publicly(served, names.CLUSTER_REWARDS, _REWARDS, QUIET).values()) == {None}


def test_a_user_without_clusters_has_an_empty_profile(reader: FeatureReader) -> None:
    profile, rewards = reader.read(EMPTY)
    assert profile is not None
    assert (len(profile), profile.query_items, profile.action_counts.shape, rewards) == (0, [], (0, 3), None)


def test_an_unknown_user_has_neither(served: Served, reader: FeatureReader) -> None:
    assert reader.read(UNKNOWN) == (None, None)
    assert set(publicly(served, names.USER_CLUSTERS, _CLUSTERS, UNKNOWN).values()) == {None}


@pytest.mark.parametrize(
    ("view", "column", "short"),
    [
        (names.USER_CLUSTERS, names.IMPORTANCE, [1.0]),
        (names.USER_CLUSTERS, names.ACTION_COUNTS, [1.0] * 5),
        (names.USER_CLUSTERS, names.QUERY_OFFSETS, [0, 1]),
        (names.CLUSTER_REWARDS, names.REWARD_LONG, [1.0]),
        (names.CLUSTER_REWARDS, names.DRAWS_SESSION, [1.0]),
    ],
)
def test_a_ragged_row_is_refused_by_the_name_of_its_user(
    served: Served, reader: FeatureReader, view: str, column: str, short: list[float]
) -> None:
    user = f"ragged-{column}"
    store = open_store(served.folder / "feature_repo", served.redis_url)
    definition = store.get_feature_view(view)
    columns = [field.name for field in definition.features]
    good = publicly(served, view, columns, "u0")

    def write(row: dict[str, Any]) -> None:
        protos = {
            field.name: python_values_to_proto_values([row[field.name]], field.dtype.to_value_type())[0] for field in definition.features
        }
        key = EntityKey(join_keys=[names.JOIN_KEY], entity_values=[Value(string_val=user)])
        rows = [(key, protos, datetime.fromtimestamp(row.pop("at") / 1e6, UTC), None)]
        store._get_provider().online_store.online_write_batch(store.config, definition, rows, None)

    write(good | {"at": AS_OF})
    profile, rewards = reader.read(user)
    assert (profile if view == names.USER_CLUSTERS else rewards) is not None  # the way of writing is sound
    write(good | {column: short, "at": NOW})
    with pytest.raises(FeatureStoreError, match=f"row of user '{user}'"):
        reader.read(user)


def test_not_applied_yet_is_said(deployment: Deployment) -> None:
    with pytest.raises(FeatureStoreError, match="run `feast apply` in "):
        FeatureReader(deployment.settings.feature_repo_path, deployment.settings.redis_url, timeout=1.0)


def test_redis_away_at_open_is_said_without_the_password(served: Served) -> None:
    with pytest.raises(DependencyUnavailableError) as caught:
        FeatureReader(Path(served.folder / "feature_repo"), "redis://user:s3cret@127.0.0.1:1/0", timeout=1.0)
    assert "redis://127.0.0.1:1/0" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_redis_that_does_not_answer_holds_no_longer_than_the_timeout(served: Served) -> None:
    reader = FeatureReader(served.folder / "feature_repo", served.redis_url, timeout=0.1)
    with served.halted(), pytest.raises(DependencyUnavailableError, match="is unavailable"):
        reader.read("u0")
    assert reader.read("u0")[0] is not None
