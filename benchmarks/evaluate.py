"""Evaluate 10,000,000 logged decisions of 20 candidates for one policy: wall time and peak memory of all processes.

The log was drawn by noisy quotas; the target is `query_reward`, whose scores and water-filled quotas are computed from the logged evidence
within the measured time, for every decision, as are the doubly robust difference, three estimators, diagnostics and audit. `bandit`, which
reads the features too and solves for its budgeted quotas, is measured on a tenth of the log and reported beside. The log is a file of
outcomes as `join` writes it, streamed in batches; making it is not measured.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from bandit.model.featurize import FEATURE_NAMES, FEATURE_VERSION
from bandit.model.linear_model import LinearModel, Manifest, sha256, weight_count
from bandit.policy.logged_inputs import INPUTS
from bandit.policy.quotas import proportional
from bandit.rewards.scheme import RewardScheme
from bandit.settings.sections import GateSettings, PolicySettings
from benchmarks.result import Result
from training.evaluation.evaluate import LOGGED, Target, evaluate_log
from training.models.outcomes import OUTCOMES, ROWS_AT_ONCE, outcomes_writer

DECISIONS, CANDIDATES, QUERIES, CAP = 10_000_000, 20, 3, 2.0
GROUP = ROWS_AT_ONCE
USERS = 1_000_000
PROCESSES = 2
SECONDS_LIMIT, MEGABYTES_LIMIT = 60.0, 2048.0


def row_group(rng: np.random.Generator, *, features: bool) -> pa.Table:
    n, cells = CANDIDATES, GROUP * CANDIDATES
    impressions = rng.gamma(0.5, 20.0, (GROUP, n)) * (rng.random((GROUP, n)) < 0.7)
    rate = rng.beta(2.0, 8.0, (GROUP, n))
    caps = np.full((GROUP, n), CAP)
    weights = (rate + rng.uniform(0.05, 0.3, (GROUP, n))).ravel()
    quotas = proportional(weights, np.full(GROUP, QUERIES), caps.ravel(), np.arange(GROUP + 1) * n).reshape(GROUP, n)
    fraction, u = quotas - np.floor(quotas), rng.random((GROUP, 1))
    draws = (np.floor(quotas) + np.diff(np.ceil(fraction.cumsum(axis=1).round(9) - u), axis=1, prepend=0.0)).astype(np.int32)
    row, place = np.nonzero(draws)
    count = draws[row, place]
    starts = np.concatenate(([0], np.cumsum(np.bincount(row, minlength=GROUP)))).astype(np.int32)
    offsets = np.arange(GROUP + 1, dtype=np.int32) * n

    def cell(values: np.ndarray) -> pa.Array:
        return pa.ListArray.from_arrays(offsets, pa.array(values.ravel()))

    def sparse(values: np.ndarray) -> pa.Array:
        return pa.ListArray.from_arrays(starts, pa.array(values))

    d = len(FEATURE_NAMES) if features else 0
    evidence = {"impressions_long": impressions, "reward_long": impressions * rate}
    zeros = np.zeros(cells)
    columns = {
        "decision_id": pa.array(np.arange(GROUP)).cast(pa.string()),
        "user_id": pa.array([f"user-{number}" for number in rng.integers(0, USERS, GROUP)]),
        "decided_at": pa.array(np.arange(GROUP)),
        "policy": pa.array(["bandit"] * GROUP),
        "model_version": pa.array(["1"] * GROUP),
        "arm": pa.array([""] * GROUP),
        "k": pa.array(np.full(GROUP, QUERIES, np.int32)),
        "quotas": cell(quotas),
        "caps": cell(caps),
        "drawn": sparse(place.astype(np.int32)),
        "draws": sparse(count),
        "shown": sparse(4 * count),
        "rewards": sparse(rng.binomial(4 * count, rate[row, place]).astype(np.float64)),
        "rates": cell(rate.astype(np.float32)),
        "features": pa.ListArray.from_arrays(offsets * d, pa.array(rng.random(cells * d, np.float32))),
        **{name: cell(evidence.get(name, zeros)) for name in INPUTS},
        "totals": pa.ListArray.from_arrays(np.arange(GROUP + 1, dtype=np.int32) * len(INPUTS), pa.array(rng.random(GROUP * len(INPUTS)))),
    }
    return pa.table([columns[field.name].cast(field.type) for field in OUTCOMES], OUTCOMES)


def write(file: Path, decisions: int, *, features: bool) -> None:
    rng, left = np.random.default_rng(0), decisions
    with outcomes_writer(file, {}) as writer:
        while left > 0:
            table = row_group(rng, features=features).slice(0, min(left, GROUP))
            writer.write_table(table, row_group_size=GROUP)
            left -= table.num_rows


def candidate() -> LinearModel:
    weights = np.random.default_rng(1).normal(0.0, 0.02, weight_count(len(FEATURE_NAMES))).astype("<f4").tobytes()
    manifest = Manifest(
        feature_version=FEATURE_VERSION,
        feature_names=list(FEATURE_NAMES),
        trained_from=0,
        trained_until=1,
        rows=1,
        impressions=1.0,
        learner="",
        prior_mean=0.2,
        prior_strength=8.0,
        topic_means={},
        exploration=PolicySettings().exploration(),
        weights_sha256=sha256(weights),
    )
    return LinearModel(manifest=manifest, weights=weights)


def child(file: Path, policy: str) -> None:
    scheme = RewardScheme(weights={"repin": 1.0}, minimum=0.0, maximum=1.0)
    target = Target(label=policy, policy=policy, model=candidate() if policy == "bandit" else None)
    started = time.perf_counter()
    found = evaluate_log(
        file,
        target,
        Target(label=LOGGED, policy=LOGGED),
        GateSettings().gate(),
        scheme,
        rng=np.random.default_rng(0),
        estimators=("ips", "snips", "dr"),
        processes=PROCESSES,
    )
    seconds = time.perf_counter() - started
    own, theirs = (resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(found.decisions, seconds, own + PROCESSES * theirs, found.verdict.replace(" ", "_"))


def measured(file: Path, policy: str) -> tuple[int, float, float, str]:
    command = [sys.executable, "-m", "benchmarks.evaluate", str(file), policy]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    decisions, seconds, megabytes, verdict = done.stdout.split()[-4:]
    return int(decisions), float(seconds), float(megabytes), verdict


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder) / "small.parquet", Path(folder) / "large.parquet"
        write(small, DECISIONS // 10, features=True)
        beside = measured(small, "bandit")
        print(f"bandit: {beside[0]:,} decisions in {beside[1]:.1f} s, {beside[2]:.0f} MB, {beside[3]}")
        small.unlink()
        write(large, DECISIONS, features=False)
        decisions, seconds, megabytes, verdict = measured(large, "query_reward")
        size = large.stat().st_size / 1e9
    print(f"query_reward: {decisions:,} decisions in {seconds:.1f} s, {megabytes:.0f} MB, {verdict}; the file has {size:.1f} GB")
    detail = {
        "decisions": decisions,
        "candidates": CANDIDATES,
        "target": "query_reward, quotas computed from logged evidence within the time",
        "processes": PROCESSES,
        "file_gb": size,
        "verdict": verdict,
        "bandit_on_a_tenth": {"decisions": beside[0], "seconds": beside[1], "megabytes": beside[2]},
    }
    for name, value, unit, limit in (
        ("evaluate_10m_s", seconds, "s", SECONDS_LIMIT),
        ("evaluate_10m_mb", megabytes, "MB", MEGABYTES_LIMIT),
    ):
        Result(name=name, value=value, unit=unit, better="lower", limit=limit, detail=detail).write()


if __name__ == "__main__":
    child(Path(sys.argv[1]), sys.argv[2]) if len(sys.argv) > 2 else main()
