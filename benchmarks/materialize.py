"""Materialize 1,000,000 clusters (20,000 users of 50) from Parquet to a real Redis: wall time and peak memory.

Both views are written: `user_clusters` with three query items a cluster, and `cluster_rewards`. The median of three runs, each in a
process of its own, because peak memory only ever grows.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from bandit.settings.load import DEFAULT_FILE, load_settings
from benchmarks.result import Result
from feature_repo import names
from training.deployment import create
from training.local_redis import URL_VARIABLE, local_redis
from training.logs.tables import write_table

USERS, CLUSTERS, ITEMS = 20_000, 50, 3
RUNS = 3
AS_OF = 1_767_225_600_000_000  # 2026-01-01
SECONDS_LIMIT, MEGABYTES_LIMIT = 15.0, 1500.0


def write_views(repository: Path, rng: np.random.Generator) -> None:
    total = USERS * CLUSTERS
    users = pa.array([f"user-{number}" for number in range(USERS)])
    ids = pa.array([f"item-{number}" for number in rng.integers(0, 1_000_000, total)])
    actions = ["impression", "repin", "click", "closeup", "hide"]
    times = pa.array([datetime.fromtimestamp(AS_OF / 1e6, UTC).replace(tzinfo=None)] * USERS, pa.timestamp("us"))

    def lists(values: pa.Array | np.ndarray, each: int = CLUSTERS) -> pa.Array:
        return pa.ListArray.from_arrays(
            np.arange(USERS + 1, dtype=np.int32) * each, values if isinstance(values, pa.Array) else pa.array(values)
        )

    floats = lambda count=total: rng.random(count)  # noqa: E731
    write_table(
        pa.table(
            {
                names.JOIN_KEY: users,
                names.CLUSTER_IDS: lists(ids),
                names.TOPIC_IDS: lists(rng.integers(0, 64, total)),
                names.TOPIC_HISTORY: lists(floats()),
                names.ITEM_COUNTS: lists(rng.integers(1, 30, total)),
                names.ACTION_TYPES: pa.array([actions] * USERS),
                names.ACTION_COUNTS: lists(floats(total * len(actions)), CLUSTERS * len(actions)),
                names.IMPORTANCE: lists(floats()),
                names.LAST_ACTION_AT: lists(rng.integers(0, AS_OF, total)),
                names.QUERY_ITEMS: lists(ids.take(pa.array(rng.integers(0, total, total * ITEMS))), CLUSTERS * ITEMS),
                names.QUERY_WEIGHTS: lists(floats(total * ITEMS), CLUSTERS * ITEMS),
                names.QUERY_OFFSETS: lists(np.tile(np.arange(CLUSTERS + 1) * ITEMS, USERS), CLUSTERS + 1),
                names.CLUSTERS_GENERATION: pa.array([1] * USERS),
                names.TIMESTAMP: times,
            }
        ),
        repository / names.USER_CLUSTERS_PATH / "snapshot.parquet",
    )
    write_table(
        pa.table(
            {
                names.JOIN_KEY: users,
                names.AS_OF: pa.array([AS_OF] * USERS),
                names.REWARDED_CLUSTERS: lists(ids),
                **{name: lists(floats()) for name in names.SUMS},
                names.REWARDS_GENERATION: pa.array([1] * USERS),
                names.TIMESTAMP: times,
            }
        ),
        repository / names.CLUSTER_REWARDS_PATH / "snapshot.parquet",
    )


def child(folder: Path) -> None:
    from training.features.feature_store import apply  # noqa: PLC0415
    from training.features.materialize import materialize  # noqa: PLC0415 -- the parent does without Feast

    settings = load_settings(folder / DEFAULT_FILE)
    apply(settings)
    started = time.perf_counter()
    rows = materialize(settings, until=AS_OF).rows
    seconds = time.perf_counter() - started
    print(rows, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    seconds, megabytes, rows = [], [], 0
    with tempfile.TemporaryDirectory() as folder, local_redis() as url:
        os.environ.pop(URL_VARIABLE, None)
        for run in range(RUNS):
            deployment = Path(folder) / str(run)
            create(deployment, f'redis_url = "{url}"\n')
            write_views(deployment / "feature_repo", np.random.default_rng(run))
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.materialize", str(deployment)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            values = done.stdout.split()[-3:]
            rows = int(values[0])
            seconds.append(float(values[1]))
            megabytes.append(float(values[2]))
            print(f"run {run + 1} of {RUNS}: {seconds[-1]:.1f} s, {megabytes[-1]:.0f} MB", file=sys.stderr)
    detail = {"users": USERS, "clusters_per_user": CLUSTERS, "views": 2, "rows": rows, "seconds": seconds, "megabytes": megabytes}
    for name, value, unit, limit in (
        ("materialize_1m_clusters_s", statistics.median(seconds), "s", SECONDS_LIMIT),
        ("materialize_1m_clusters_mb", statistics.median(megabytes), "MB", MEGABYTES_LIMIT),
    ):
        Result(name=name, value=value, unit=unit, better="lower", limit=limit, detail=detail).write()


if __name__ == "__main__":
    child(Path(sys.argv[1])) if len(sys.argv) > 1 else main()
