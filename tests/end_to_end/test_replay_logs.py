"""What a small real replay leaves in its logs: nothing is shown twice, and what is trained on is what was served."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from bandit.model.featurize import FEATURE_NAMES
from bandit.settings.load import DEFAULT_FILE, load_settings
from examples.kuairand import data, play
from examples.kuairand.replay import Pool
from training.clustering.cluster import cluster
from training.deployment import create
from training.logs.schemas import ENGAGEMENTS

USERS = 150
CLUSTERED = 400  # users of the history, in order of id: enough for so many who can be played


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Pool]]:
    """As `play.prepare`, of a few users and in this process."""
    folder = tmp_path_factory.mktemp("replay")
    text = play.SETTINGS.format(redis_url="redis://127.0.0.1:1/0", policy="bandit").replace("[clustering]", "[clustering]\nprocesses = 1")
    create(folder, text)
    settings = load_settings(folder / DEFAULT_FILE)
    data.write_history(folder / "history.parquet")
    data.write_embeddings(folder / "items.parquet")
    history = pq.read_table(folder / "history.parquet")
    assert history.schema.equals(ENGAGEMENTS)
    some = pc.unique(history["user_id"]).sort()[:CLUSTERED]
    pq.write_table(history.filter(pc.is_in(history["user_id"], some)), folder / "history.parquet")
    cluster(settings, history=folder / "history.parquet", embeddings=folder / "items.parquet", as_of=play.START)
    pools = play.make_pools(settings)[:USERS]
    assert len(pools) == USERS
    return settings.feature_repo_path, pools


def log(folder: Path, name: str) -> list[dict[str, Any]]:
    return ds.dataset(folder / "data" / name, format="parquet").to_table().to_pylist()


@pytest.mark.parametrize(("policy", "minimum_rows"), [("action_count", None), ("bandit", None), ("bandit", 50)])
def test_the_logs_of_a_replay(
    prepared: tuple[Path, list[Pool]],
    tmp_path: Path,
    empty_redis: str,
    monkeypatch: pytest.MonkeyPatch,
    policy: str,
    minimum_rows: int | None,
) -> None:
    if minimum_rows is not None:
        monkeypatch.setenv("QUERY_REWARDS_TRAINING__MINIMUM_ROWS", str(minimum_rows))
    repository, pools = prepared
    played = play.play_policy(policy, tmp_path, repository, empty_redis, pools, 1, lambda step: None)
    for pool, impressions in zip(pools, played.impressions, strict=True):
        assert pool.stop - 1 <= impressions <= pool.stop, pool.user_id
    assert sum(played.impressions) >= sum(pool.stop for pool in pools) - 3  # so that policies differ by a few at most
    assert played.rows_materialized > USERS

    feedback, decisions = log(tmp_path, "feedback"), {row["decision_id"]: row for row in log(tmp_path, "decisions")}
    assert len(decisions) == played.decisions
    shown = Counter((row["user_id"], row["cluster_id"], row["item_id"]) for row in feedback if row["action"] == "impression")
    held = Counter((pool.user_id, name, each.item_id) for pool in pools for name, group in pool.exposures.items() for each in group)
    assert shown.total() == sum(played.impressions)
    assert shown <= held  # no exposure is shown twice

    served = [row["policy"] for _, row in sorted(decisions.items())]
    if policy == "bandit" and minimum_rows is None:  # too few rows for a model: the published flow goes on
        assert set(served) == {"query_reward"}
        assert {row["model_version"] for row in decisions.values()} == {""}
    elif policy == "bandit":
        assert (served[0], served[-1]) == ("query_reward", "bandit")
        assert len({row["model_version"] for row in decisions.values()}) > 3
    else:
        assert set(served) == {policy}
    if policy != "bandit":
        assert not (tmp_path / "data" / "examples.parquet").exists()
        return
    examples = pq.read_table(tmp_path / "data" / "examples.parquet").to_pylist()
    assert len(examples) > 200
    for row in examples:
        decision = decisions[row["decision_id"]]
        place = decision["cluster_ids"].index(row["cluster_id"])
        logged = np.array(decision["features"], np.float32).reshape(-1, len(FEATURE_NAMES))[place]
        np.testing.assert_array_equal(np.array(row["features"], np.float32), logged)
        assert row["draws"] == sum(query["cluster_id"] == row["cluster_id"] for query in decision["queries"])
