"""Clustering 10,000 users of 100 items in two processes, against a bare loop of scipy's `linkage` and `fcluster` in two processes.

The clustering also finds medoids, importance and query items, and writes the snapshot.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.cluster.hierarchy import fcluster, linkage

from bandit.settings.load import DEFAULT_FILE, load_settings
from benchmarks.timing import in_processes
from training.deployment import create
from training.logs.schemas import ENGAGEMENTS
from training.logs.tables import write_table

USERS, ITEMS, CATALOGUE, DIMENSIONS, RUNS = 10_000, 100, 20_000, 64, 3
NOW = 1_767_225_600_000_000


def write_world(folder: Path) -> None:
    rng = np.random.default_rng(1)
    vectors = (rng.normal(size=(64, DIMENSIONS))[rng.integers(0, 64, CATALOGUE)] + 0.7 * rng.normal(size=(CATALOGUE, DIMENSIONS))).astype(
        np.float32
    )
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = pc.binary_join_element_wise("item-", pa.array(range(CATALOGUE)).cast(pa.string()), "")
    lists = pa.ListArray.from_arrays(np.arange(CATALOGUE + 1, dtype=np.int32) * DIMENSIONS, pa.array(vectors.ravel()))
    topics = pa.array(rng.integers(0, 64, CATALOGUE))
    write_table(pa.table({"item_id": ids, "embedding": lists, "topic": topics}), folder / "items.parquet")
    items = np.concatenate([rng.choice(CATALOGUE, ITEMS, replace=False) for _ in range(USERS)])
    np.save(folder / "vectors.npy", vectors)
    np.save(folder / "items.npy", items.reshape(USERS, ITEMS))
    history = {
        "user_id": pc.binary_join_element_wise("user-", pa.array(np.repeat(np.arange(USERS), ITEMS)).cast(pa.string()), ""),
        "item_id": ids.take(pa.array(items)),
        "action": pa.array(["repin"] * len(items)),
        "occurred_at": pa.array(NOW - rng.integers(0, 86_400_000_000, len(items)), pa.int64()).cast(ENGAGEMENTS.field("occurred_at").type),
    }
    write_table(pa.table(history, schema=ENGAGEMENTS), folder / "history.parquet")


def bare(part: tuple[str, int, int]) -> int:
    folder, start, end = part
    vectors, items = np.load(f"{folder}/vectors.npy").astype(np.float64), np.load(f"{folder}/items.npy")
    return sum(int(fcluster(linkage(vectors[items[user]], "ward"), 1.0, "distance").max()) for user in range(start, end))


def child(side: str, folder: Path) -> None:
    from training.clustering.cluster import cluster  # noqa: PLC0415

    settings = load_settings(folder / DEFAULT_FILE)
    start = time.perf_counter()
    if side == "cluster":
        found = cluster(settings, history=folder / "history.parquet", embeddings=folder / "items.parquet", as_of=NOW).clusters
    else:
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
            found = sum(pool.map(bare, [(str(folder), 0, USERS // 2), (str(folder), USERS // 2, USERS)]))
    print(found, "clusters in", time.perf_counter() - start)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        create(Path(folder), "[clustering]\nprocesses = 2\n")
        write_world(Path(folder))
        in_processes("cluster_vs_scipy", ("cluster", "scipy"), Path(folder), runs=RUNS, limit=1.5, users=USERS, items=ITEMS)


if __name__ == "__main__":
    child(sys.argv[1], Path(sys.argv[2])) if len(sys.argv) > 1 else main()
