"""Rows of `cluster_rewards` that the stream writes: Feast and serving read them like its own, and no old one replaces a new one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import redis

from bandit.rewards.sums import DRAW, Term, UserSums
from bandit.types import ClusterRewards
from feature_repo import names
from feature_repo.store import open_store
from serving.features.reader import FeatureReader
from tests.conftest import Deployment
from tests.tables_made import DAY, HOUR, NOW
from training.features.feature_store import apply, online_rows
from training.features.online_rows import RewardRows

FEATURES = names.columns(names.CLUSTER_REWARDS)
OLD, NEW = f"{1:012d}.{7:015d}", f"{2:012d}.{0:015d}"


@pytest.fixture
def applied(deployment: Deployment) -> Deployment:
    apply(deployment.settings)
    return deployment


def rows_of(deployment: Deployment) -> RewardRows:
    rows = online_rows(deployment.settings, deployment.redis)
    rows.prepare()
    return rows


def write(deployment: Deployment, rows: RewardRows, user: str, sums: UserSums, version: str = OLD) -> None:
    pipeline = deployment.redis.pipeline(transaction=False)
    rows.write(pipeline, user, sums, version)
    pipeline.execute()


def sums_of(deployment: Deployment, terms: list[Term]) -> UserSums:
    sums = UserSums(deployment.settings.reward.sums_definition())
    sums.add(terms)
    return sums


def some(deployment: Deployment, *, at: int = NOW) -> UserSums:
    codes = [("Möbel", 0, at), ("Möbel", 1, at - HOUR), ("c2", 4, at - DAY), ("c2", DRAW, at - 7), ("c3", DRAW, at - 3)]
    return sums_of(deployment, [Term(*code) for code in codes])


def publicly(deployment: Deployment, user: str) -> dict[str, Any]:
    """What Feast's own read says."""
    store = open_store(deployment.settings.feature_repo_path, deployment.settings.redis_url)
    features = [f"{names.CLUSTER_REWARDS}:{name}" for name in FEATURES]
    read = store.get_online_features(features=features, entity_rows=[{names.JOIN_KEY: user}]).to_dict()
    return {name: read[name][0] for name in FEATURES}


def expected_row(sums: UserSums) -> dict[str, Any]:
    rewards = sums.rewards()
    row: dict[str, Any] = dict(zip(names.SUMS, rewards.sums.values, strict=True))
    row |= {name: getattr(rewards, name) for name in FEATURES if hasattr(rewards, name)} | {
        names.REWARDED_CLUSTERS: rewards.cluster_ids,
        names.REWARDS_GENERATION: 0,
    }
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in row.items()}


def assert_equal(found: ClusterRewards | None, expected: ClusterRewards) -> None:
    assert found is not None
    for name in ClusterRewards.__dataclass_fields__:
        left, right = (record.sums.values if name == "sums" else getattr(record, name) for record in (found, expected))
        np.testing.assert_array_equal(left, right, err_msg=name)


@pytest.mark.parametrize("user", ["u", "Zoë \N{SNOWMAN}", "x" * 256])
def test_what_is_written_is_what_feast_and_serving_read_to_the_bit(applied: Deployment, user: str) -> None:
    rows, sums = rows_of(applied), some(applied)
    write(applied, rows, user, sums)
    expected = expected_row(sums)
    assert len(expected) == len(FEATURES)
    assert publicly(applied, user) == expected
    reader = FeatureReader(applied.settings.feature_repo_path, applied.settings.redis_url, timeout=5.0)
    profile, rewards = reader.read(user)
    assert profile is None
    assert_equal(rewards, sums.rewards())
    assert_equal(rows.read(user), sums.rewards())


def test_feast_sees_the_time_of_the_sums(applied: Deployment) -> None:
    rows, sums = rows_of(applied), some(applied, at=NOW + 123_457)
    write(applied, rows, "u", sums)
    store = open_store(applied.settings.feature_repo_path, applied.settings.redis_url)
    view = f"{names.CLUSTER_REWARDS}:{names.AS_OF}"
    response = store.get_online_features(features=[view], entity_rows=[{names.JOIN_KEY: "u"}])
    (stamp,) = next(result.event_timestamps for place, result in enumerate(response.proto.results) if place == 1)
    assert stamp.ToMicroseconds() == NOW + 123_457


def test_a_row_without_clusters_is_read_as_such(applied: Deployment) -> None:
    rows = rows_of(applied)
    empty = sums_of(applied, [])
    write(applied, rows, "u", empty)
    assert_equal(rows.read("u"), empty.rewards())
    _, rewards = FeatureReader(applied.settings.feature_repo_path, applied.settings.redis_url, timeout=5.0).read("u")
    assert rewards is not None
    assert rewards.cluster_ids == []


def test_a_user_without_a_row_has_none(applied: Deployment) -> None:
    assert rows_of(applied).read("nobody") is None


def test_an_older_version_never_replaces_a_newer_one_even_when_its_time_is_later(applied: Deployment) -> None:
    rows, new = rows_of(applied), some(applied)
    write(applied, rows, "u", new, NEW)
    write(applied, rows, "u", some(applied, at=NOW + HOUR), OLD)
    assert_equal(rows.read("u"), new.rewards())
    later = some(applied, at=NOW - HOUR)  # a late event does not move the time, and is written
    write(applied, rows, "u", later, f"{10:012d}.{0:015d}")
    assert_equal(rows.read("u"), later.rewards())


def test_the_same_version_again_changes_nothing(applied: Deployment) -> None:
    rows, sums, client = rows_of(applied), some(applied), applied.redis
    write(applied, rows, "u", sums)
    before = client.hgetall(rows.key("u"))
    write(applied, rows, "u", sums)
    assert client.hgetall(rows.key("u")) == before


def test_the_users_other_view_is_left_alone(applied: Deployment) -> None:
    rows, client = rows_of(applied), applied.redis
    client.hset(rows.key("u"), mapping={"another view": "x"})
    write(applied, rows, "u", some(applied))
    assert client.hget(rows.key("u"), "another view") == b"x"


def test_rows_live_for_ever_unless_the_store_says_otherwise(applied: Deployment) -> None:
    rows = rows_of(applied)
    write(applied, rows, "u", some(applied))
    assert applied.redis.ttl(rows.key("u")) == -1
    file = applied.settings.feature_repo_path / "feature_store.yaml"
    file.write_text(file.read_text().replace("  type: redis\n", "  type: redis\n  key_ttl_seconds: 1000\n"))
    rows = rows_of(applied)
    write(applied, rows, "v", some(applied))
    assert 900 < applied.redis.ttl(rows.key("v")) <= 1000


def test_a_redis_that_has_forgotten_the_script_says_so_and_knows_it_again(applied: Deployment) -> None:
    rows = rows_of(applied)
    applied.redis.script_flush()
    with pytest.raises(redis.exceptions.NoScriptError):
        write(applied, rows, "u", some(applied))
    rows.prepare()
    write(applied, rows, "u", some(applied))
    assert rows.read("u") is not None
