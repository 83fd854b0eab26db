"""A few users whose clusters and rewards are in Feast's online store, ready to be served; with a Redis of its own, which may be halted."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import redis

from bandit.model.linear_model import LinearModel, sha256
from bandit.records import Decision
from bandit.settings.load import DEFAULT_FILE, Settings, load_settings
from feature_repo import names
from serving import QuerySelector
from tests.tables_made import DAY, HOUR, KEYS, NOW
from training.deployment import create
from training.features.materialize import materialize
from training.logs.schemas import CLUSTER_REWARDS, USER_CLUSTERS
from training.logs.tables import write_table

REWARDED = ("u0", "u1", "u2")
QUIET = "quiet"  # has clusters, but no rewards
EMPTY = "empty"  # has a row without clusters
UNKNOWN = "nobody"
AS_OF = NOW - HOUR
ITEMS = (10, 6, 4, 3, 2, 1)  # query items of a user's first, second, ... cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A deployment whose features are online."""

    folder: Path
    redis_url: str

    @property
    def redis(self) -> redis.Redis:
        return redis.Redis.from_url(self.redis_url)

    def settings_file(self, policy: str = "query_reward", *, deadline_ms: float = 5000.0, sections: str = "", **serving: float) -> Path:
        """A settings file beside the others, of this policy."""
        lines = [f'redis_url = "{self.redis_url}"', "[serving]", f"deadline_ms = {deadline_ms}"]
        lines += [f"{key} = {value}" for key, value in serving.items()]
        file = self.folder / f"{policy}.toml"
        file.write_text("\n".join([*lines, sections or "[policy]", f'name = "{policy}"', ""]))
        return file

    def settings(self) -> Settings:
        return load_settings(self.settings_file())

    def open(self, policy: str = "query_reward", **options: Any) -> QuerySelector:
        return QuerySelector.open(self.settings_file(policy, **options))

    def records(self) -> list[bytes]:
        """Every logged decision as it stands in Redis."""
        client = self.redis
        keys = sorted(client.scan_iter(KEYS.every_partition.decisions))
        return [fields[names.RECORD_FIELD.encode()] for key in keys for _, fields in client.xrange(key)]

    def decisions(self) -> list[Decision]:
        return [msgspec.msgpack.decode(record, type=Decision) for record in self.records()]

    def forget(self) -> None:
        """Back to features only: no decisions, no model."""
        client = self.redis
        for key in client.scan_iter("{query_rewards*"):
            client.delete(key)

    @contextmanager
    def halted(self) -> Iterator[None]:
        """The server accepts connections, and answers nothing."""
        process = self.redis.info("server")["process_id"]
        os.kill(process, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(process, signal.SIGCONT)


def hand_over(client: redis.Redis, version: str, model: LinearModel, *, data: bytes | None = None) -> None:
    """What `promote` leaves in Redis; `data` instead of the model's own bytes, to be refused."""
    digest = sha256(model.to_bytes())
    client.set(KEYS.model(digest), model.to_bytes() if data is None else data)
    client.set(KEYS.champion, msgspec.msgpack.encode({"version": version, "sha256": digest}))


def copied(served: Served, url: str, by: str = "") -> Served:
    """The same features on another server, to be reached by that URL or by another one of the same server."""
    client = redis.Redis.from_url(url)
    for key in served.redis.scan_iter("*"):
        if served.redis.type(key) == b"hash":
            client.hset(key, mapping=served.redis.hgetall(key))
    return Served(folder=served.folder, redis_url=by or url)


def make(folder: Path, redis_url: str) -> Served:
    create(folder, f'redis_url = "{redis_url}"\n')
    settings = load_settings(folder / DEFAULT_FILE)
    rng = np.random.default_rng(5)
    stamp = datetime.fromtimestamp(AS_OF / 1e6, UTC).replace(tzinfo=None)
    clusters = [_profile_row(user, rng) | {names.TIMESTAMP: stamp} for user in (*REWARDED, QUIET, EMPTY)]
    rewards = [_rewards_row(row, rng) | {names.TIMESTAMP: stamp} for row in clusters[: len(REWARDED)]]
    write_table(pa.Table.from_pylist(clusters, USER_CLUSTERS), settings.feature_repo_path / names.USER_CLUSTERS_PATH / "a.parquet")
    write_table(pa.Table.from_pylist(rewards, CLUSTER_REWARDS), settings.feature_repo_path / names.CLUSTER_REWARDS_PATH / "a.parquet")
    assert materialize(settings, until=NOW).rows == len(clusters) + len(rewards)
    return Served(folder=folder, redis_url=redis_url)


def _profile_row(user: str, rng: np.random.Generator) -> dict[str, Any]:
    sizes = () if user == EMPTY else ITEMS
    n = len(sizes)
    return {
        names.JOIN_KEY: user,
        names.CLUSTER_IDS: [f"{user}-c{number}" for number in range(n)],
        names.TOPIC_IDS: rng.integers(0, 4, n).tolist(),
        names.TOPIC_HISTORY: rng.normal(0.0, 0.05, n).tolist(),
        names.ITEM_COUNTS: rng.integers(1, 40, n).tolist(),
        names.ACTION_TYPES: ["impression", "repin", "click"],
        names.ACTION_COUNTS: rng.integers(0, 30, 3 * n).astype(float).tolist(),
        names.IMPORTANCE: rng.gamma(2.0, 3.0, n).tolist(),
        names.LAST_ACTION_AT: (NOW - rng.integers(1, 90, n) * DAY).tolist(),
        names.QUERY_ITEMS: [f"{user}-c{number}-i{item}" for number, size in enumerate(sizes) for item in range(size)],
        names.QUERY_WEIGHTS: rng.gamma(1.0, 1.0, sum(sizes)).tolist(),
        names.QUERY_OFFSETS: np.concatenate(([0], np.cumsum(sizes, dtype=np.int64))).tolist(),
    }


def _rewards_row(profile: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Rewards of all but the last cluster in another order, and of one that the profile no longer has."""
    ids = [*profile[names.CLUSTER_IDS][-2::-1], "gone"]
    n = len(ids)
    session, long = rng.gamma(1.0, 4.0, n), rng.gamma(2.0, 20.0, n)
    return {
        names.JOIN_KEY: profile[names.JOIN_KEY],
        names.AS_OF: AS_OF,
        names.REWARDED_CLUSTERS: ids,
        names.IMPRESSIONS_SESSION: session.tolist(),
        names.REWARD_SESSION: (session * rng.random(n) * 0.5).tolist(),
        names.IMPRESSIONS_LONG: long.tolist(),
        names.REWARD_LONG: (long * rng.random(n) * 0.5).tolist(),
        names.DRAWS_SESSION: rng.gamma(1.0, 2.0, n).tolist(),
        "events": n,
    }
