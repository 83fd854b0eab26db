"""A served world for the benchmarks: users with clusters, evidence and a model, in a Redis of their own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import redis

from bandit.model.featurize import FEATURE_NAMES, FEATURE_VERSION
from bandit.model.linear_model import LinearModel, Manifest, sha256, weight_count
from bandit.settings.load import DEFAULT_FILE, load_settings
from bandit.settings.sections import PolicySettings
from feature_repo import names
from feature_repo.keys import Keys
from training.deployment import create
from training.local_redis import URL_VARIABLE, local_redis
from training.logs.schemas import CLUSTER_REWARDS, USER_CLUSTERS
from training.logs.tables import write_table

NOW = 1_767_225_600_000_000  # 2026-01-01
ACTIONS = ["impression", "repin", "click", "closeup", "hide"]
ITEMS = 10  # query items of a cluster, the default of `clustering.items_per_cluster`
K = 10
_START_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Where the settings file lies, and the Redis that serves it."""

    settings_file: Path
    redis_url: str


@contextlib.contextmanager
def served_world(users: dict[str, int], **serving: float) -> Iterator[World]:
    """A deployment that serves `users` (id: number of clusters) with a bandit; `serving` are settings of that section."""
    with tempfile.TemporaryDirectory() as folder, local_redis() as url:
        os.environ.pop(URL_VARIABLE, None)
        lines = [f'redis_url = "{url}"', "[serving]", *(f"{key} = {value}" for key, value in ({"deadline_ms": 2000.0} | serving).items())]
        create(Path(folder), "\n".join([*lines, ""]))
        _fill(Path(folder), url, users)
        yield World(settings_file=Path(folder) / DEFAULT_FILE, redis_url=url)


def _fill(folder: Path, url: str, users: dict[str, int]) -> None:
    from training.features.materialize import materialize  # noqa: PLC0415 -- takes seconds, and shall not count as the serving side's

    rng = np.random.default_rng(7)
    settings = load_settings(folder / DEFAULT_FILE)
    stamp = datetime.fromtimestamp(NOW / 1e6, UTC).replace(tzinfo=None)
    rows = [profile_and_rewards(user, n, rng, stamp) for user, n in users.items()]
    repository = settings.feature_repo_path
    write_table(pa.Table.from_pylist([row[0] for row in rows], USER_CLUSTERS), repository / names.USER_CLUSTERS_PATH / "a.parquet")
    write_table(pa.Table.from_pylist([row[1] for row in rows], CLUSTER_REWARDS), repository / names.CLUSTER_REWARDS_PATH / "a.parquet")
    materialize(settings, until=NOW)
    with redis.Redis.from_url(url) as client:
        model = random_model(rng)
        digest, keys = sha256(model.to_bytes()), Keys.of(repository)
        client.set(keys.model(digest), model.to_bytes())
        client.set(keys.champion, msgspec.msgpack.encode({"version": "1", "sha256": digest}))


def profile_and_rewards(user: str, n: int, rng: np.random.Generator, stamp: datetime) -> tuple[dict[str, Any], dict[str, Any]]:
    ids = [f"item-{number:07d}" for number in rng.choice(10_000_000, n, replace=False)]
    common = {names.JOIN_KEY: user, names.TIMESTAMP: stamp}
    clusters = {
        names.ACTION_TYPES: ACTIONS,
        names.CLUSTER_IDS: ids,
        names.TOPIC_IDS: rng.integers(0, 64, n).tolist(),
        names.TOPIC_HISTORY: rng.normal(0.0, 0.02, n).tolist(),
        names.ITEM_COUNTS: rng.integers(1, 30, n).tolist(),
        names.ACTION_COUNTS: rng.integers(0, 30, len(ACTIONS) * n).astype(float).tolist(),
        names.IMPORTANCE: rng.gamma(2.0, 3.0, n).tolist(),
        names.LAST_ACTION_AT: (NOW - rng.integers(1, 90 * 86_400_000_000, n)).tolist(),
        names.QUERY_ITEMS: [f"item-{number:07d}" for number in rng.integers(0, 10_000_000, n * ITEMS)],
        names.QUERY_WEIGHTS: rng.gamma(1.0, 1.0, n * ITEMS).tolist(),
        names.QUERY_OFFSETS: (np.arange(n + 1) * ITEMS).tolist(),
    }
    impressions = rng.gamma(1.0, 20.0, n)
    order = rng.permutation(n)
    rewards = {
        names.REWARDED_CLUSTERS: [ids[place] for place in order],
        names.AS_OF: NOW,
        names.IMPRESSIONS_SESSION: (impressions * 0.1).tolist(),
        names.REWARD_SESSION: (impressions * 0.1 * rng.random(n)).tolist(),
        names.IMPRESSIONS_LONG: impressions.tolist(),
        names.REWARD_LONG: (impressions * rng.beta(2.0, 8.0, n)).tolist(),
        names.DRAWS_SESSION: rng.gamma(1.0, 1.0, n).tolist(),
        "events": n,
    }
    return common | clusters, common | rewards


def random_model(rng: np.random.Generator) -> LinearModel:
    """A model of this library's features with small random weights."""
    weights = (rng.normal(size=weight_count(len(FEATURE_NAMES))) * 0.01).astype("<f4").tobytes()
    manifest = Manifest(
        feature_version=FEATURE_VERSION,
        feature_names=list(FEATURE_NAMES),
        trained_from=0,
        trained_until=NOW,
        rows=1,
        impressions=1.0,
        learner="random",
        prior_mean=0.2,
        prior_strength=8.0,
        topic_means={topic: float(rng.beta(2.0, 8.0)) for topic in range(64)},
        exploration=PolicySettings().exploration(),
        weights_sha256=sha256(weights),
    )
    return LinearModel(manifest=manifest, weights=weights)


@contextlib.contextmanager
def http_service(world: World, **http: float) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The HTTP service of a world in a process of its own, and the port that it listens on; `http` are settings of that section."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    variables = {f"QUERY_REWARDS_HTTP__{key.upper()}": str(value) for key, value in ({"port": port} | http).items()}
    command = [sys.executable, "-m", "query_rewards", "serve", "--settings", str(world.settings_file)]
    with tempfile.TemporaryFile() as messages, subprocess.Popen(command, env=os.environ | variables, stderr=messages) as process:
        try:
            deadline = time.monotonic() + _START_SECONDS
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    messages.seek(0)
                    raise RuntimeError(f"the service does not listen: {messages.read().decode(errors='replace')}")
                time.sleep(0.05)
            yield process, port
        finally:
            process.terminate()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
