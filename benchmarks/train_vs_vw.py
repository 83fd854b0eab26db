"""From training rows in Parquet to served weights, against `vowpalwabbit` reading the prepared text file with the same options.

A million rows; each side in a process of its own, in turn. Recording the model in MLflow is on neither side.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from bandit.model.featurize import FEATURE_NAMES, FEATURE_VERSION
from bandit.model.vowpal import write_lines
from bandit.settings.load import DEFAULT_FILE, load_settings
from benchmarks.timing import in_processes
from training.deployment import create
from training.logs.schemas import TIME
from training.logs.tables import write_table
from training.models.join import examples_file

ROWS, RUNS = 1_000_000, 5
NOW = 1_767_225_600_000_000


def write_rows(folder: Path) -> None:
    rng = np.random.default_rng(1)
    settings = load_settings(folder / DEFAULT_FILE)
    d = len(FEATURE_NAMES)
    features = np.clip(rng.normal(0.2, 0.3, (ROWS, d)), -1.0, 1.0).astype(np.float32)
    reward = rng.binomial(4, np.clip(0.1 + 0.2 * features[:, 0], 0.0, 1.0)).astype(np.float64)
    ids = pa.array([f"decision-{number}" for number in range(ROWS)])
    table = pa.table(
        {
            "decision_id": ids,
            "user_id": ids,
            "cluster_id": ids,
            "decided_at": pa.array(NOW - np.arange(ROWS)[::-1], pa.int64()).cast(TIME),
            "policy": pa.array(["bandit"] * ROWS),
            "model_version": pa.array(["1"] * ROWS),
            "feature_version": pa.array(np.full(ROWS, FEATURE_VERSION), pa.int32()),
            "mode": pa.array(["online"] * ROWS),
            "arm": pa.array([""] * ROWS),
            "draws": pa.array(np.ones(ROWS, np.int64)),
            "quota": pa.array(np.ones(ROWS)),
            "features": pa.ListArray.from_arrays(np.arange(ROWS + 1, dtype=np.int32) * d, pa.array(features.ravel())),
            "impressions": pa.array(np.full(ROWS, 4, np.int64)),
            "reward": pa.array(reward),
        }
    )
    write_table(table, examples_file(settings))
    costs = -(reward / 4.0 - features[:, FEATURE_NAMES.index("shrunk_rate")])
    write_lines(folder / "train.txt", features, costs, np.ones(ROWS), FEATURE_NAMES)


def child(side: str, folder: Path) -> None:
    from training.models.train import candidate, read_examples  # noqa: PLC0415

    settings = load_settings(folder / DEFAULT_FILE)
    start = time.perf_counter()
    if side == "train":
        candidate(settings, read_examples(settings), as_of=NOW)
    else:
        options = settings.training.learner().arguments
        subprocess.run([sys.executable, "-m", "vowpalwabbit", *options, "-d", folder / "train.txt", "-f", folder / "vw.model"], check=True)
    print(time.perf_counter() - start)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        create(Path(folder), "")
        write_rows(Path(folder))
        in_processes("train_vs_vw", ("train", "vw"), Path(folder), runs=RUNS, limit=2.5, rows=ROWS)


if __name__ == "__main__":
    child(sys.argv[1], Path(sys.argv[2])) if len(sys.argv) > 1 else main()
