"""The demo's replay, on a few of its users, through the real path."""

from __future__ import annotations

from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import redis

from examples.kuairand import data, play
from examples.kuairand.replay import Pool

USERS = 120


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Pool]]:
    settings = play.prepare(tmp_path_factory.mktemp("prepared"), lambda done, total: None)
    return settings.feature_repo_path, play.make_pools(settings)[:USERS]


def database(redis_url: str, number: int) -> str:
    url = f"{redis_url.rsplit('/', 1)[0]}/{number}"
    redis.Redis.from_url(url).flushdb()
    return url


def test_the_history_holds_every_listed_event(tmp_path: Path) -> None:
    rows = data.write_history(tmp_path / "history.parquet")
    table, source = pq.read_table(tmp_path / "history.parquet"), pq.read_table(data.FOLDER / "history.parquet")
    listed = {action: pc.sum(pc.list_value_length(source[column])).as_py() for action, column in data.LISTS.items()}
    counted = {row["values"]: row["counts"] for row in pc.value_counts(table["action"]).to_pylist()}
    assert counted == listed
    assert rows == sum(listed.values()) == 1_230_650
    assert pc.max(table["occurred_at"]) == pc.max(source["last_time"]).cast(table["occurred_at"].type)


def test_exposures_are_the_main_feeds_in_time_order_and_after_the_history() -> None:
    exposures = data.read_exposures()
    source = pq.read_table(data.FOLDER / "exposures.parquet")
    assert len(exposures.users) == pc.sum(pc.equal(source["tab"], 1)).as_py()
    assert (exposures.at[1:] >= exposures.at[:-1]).all()


def test_policies_play_half_of_each_pool_and_the_same_seed_plays_the_same(
    prepared: tuple[Path, list[Pool]], tmp_path: Path, redis_url: str
) -> None:
    repository, pools = prepared
    assert len(pools) == USERS
    assert all(pool.size >= 3 and len(pool.exposures) >= 2 for pool in pools)
    played = {}
    for number, (name, policy) in enumerate((("counts", "action_count"), ("bandit", "bandit"), ("again", "bandit")), start=1):
        steps: list[int] = []
        url = database(redis_url, number)
        played[name] = play.play_policy(policy, tmp_path / name, repository, url, pools, 1, steps.append)
        assert sum(steps) == played[name].decisions
    assert played["bandit"].reward == played["again"].reward
    assert played["bandit"] == played["again"]
    for one in played.values():
        assert all(count <= pool.stop for count, pool in zip(one.impressions, pools, strict=True))
        assert sum(one.impressions) >= 0.99 * sum(pool.stop for pool in pools)
        assert sum(one.evidence.values()) == sum(len(pool.exposures) for pool in pools)
        assert one.rows_materialized > USERS
        assert one.curve[-1]["cold_share"] < one.curve[0]["cold_share"]
