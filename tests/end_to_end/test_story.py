"""The story of the published system, through the real path: Feast, Redis, both logs, fold, join, Vowpal Wabbit, promotion."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bandit.model.featurize import FEATURE_NAMES
from examples import recipes


def decisions_of_the_hero(folder: Path) -> list[dict[str, object]]:
    files = sorted((folder / "data" / "decisions").rglob("*.parquet"))
    rows = pa.concat_tables([pq.read_table(file) for file in files]).to_pylist()
    return sorted((row for row in rows if row["user_id"] == recipes.HERO), key=lambda row: row["decided_at"])


def by_topic(row: dict[str, object], column: str) -> dict[str, float]:
    return {recipes.topic_of(cluster): value for cluster, value in zip(row["cluster_ids"], row[column], strict=True)}  # type: ignore[arg-type]


def feature(row: dict[str, object], name: str) -> dict[str, float]:
    matrix = np.array(row["features"]).reshape(len(row["cluster_ids"]), -1)  # type: ignore[arg-type]
    return by_topic({**row, "column": matrix[:, FEATURE_NAMES.index(name)].tolist()}, "column")


def test_under_query_reward_furniture_rises_with_every_round_and_passes_recipes(tmp_path: Path, empty_redis: str) -> None:
    played = recipes.play(tmp_path, empty_redis, "query_reward")
    furniture = [shown.share("furniture") for shown in played[1:]]
    assert all(later > earlier for earlier, later in pairwise(furniture)), furniture
    assert played[1].share("furniture") < played[1].share("recipes")
    assert played[-1].share("furniture") > played[-1].share("recipes") > 0.0
    for row in decisions_of_the_hero(tmp_path)[1:]:
        scores = by_topic(row, "scores")
        assert scores["travel"] == pytest.approx((scores["recipes"] + scores["furniture"]) / 2, rel=1e-12)


def test_under_the_bandit_furniture_passes_recipes_from_the_first_model_to_the_last(tmp_path: Path, empty_redis: str) -> None:
    played = recipes.play(tmp_path, empty_redis, "bandit")
    assert [shown.policy for shown in played] == ["query_reward"] + ["bandit"] * recipes.ROUNDS
    assert [shown.model_version for shown in played] == ["", *(str(version) for version in range(1, recipes.ROUNDS + 1))]
    first, last = played[1], played[-1]
    assert first.share("furniture") < first.share("recipes")
    assert last.share("furniture") > first.share("furniture")
    assert last.share("furniture") > last.share("recipes")
    assert all(shown.quotas["recipes"] > 0.0 for shown in played)
    for row in decisions_of_the_hero(tmp_path):
        assert feature(row, "shrunk_rate")["travel"] == feature(row, "user_rate")["travel"]
        assert feature(row, "log_impressions")["travel"] == 0.0


def test_the_story_is_the_same_twice(tmp_path: Path, redis_url: str) -> None:
    import redis  # noqa: PLC0415

    told = []
    for number, folder in ((14, "a"), (15, "b")):
        url = f"{redis_url.rsplit('/', 1)[0]}/{number}"
        redis.Redis.from_url(url).flushdb()
        told.append(recipes.play(tmp_path / folder, url, "bandit", rounds=2))
    assert told[0] == told[1]
