"""A day's `retrain` with a log of one day behind it, and with one of a year: ratio of the time and of the peak memory.

Both deployments have the same users, the same news each day and a training window of one day, so that only what lies behind differs. Each
`retrain` is a process of its own, in turn, on three days that follow each other; the first, which folds everything, does not count.
"""

from __future__ import annotations

import contextlib
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

from bandit.model.featurize import FEATURE_NAMES, FEATURE_VERSION
from bandit.records import Decision, Query
from bandit.settings.load import DEFAULT_FILE, load_settings
from bandit.types import MICROSECONDS_PER_DAY, MICROSECONDS_PER_MINUTE
from benchmarks.result import Result
from benchmarks.world import NOW, profile_and_rewards
from feature_repo import names
from training.deployment import create
from training.local_redis import URL_VARIABLE, local_redis
from training.logs.decisions import decision_table
from training.logs.schemas import FEEDBACK, TIME, USER_CLUSTERS
from training.logs.tables import write_table

USERS, CLUSTERS, SHORT, LONG, RUNS, LIMIT = 300, 5, 1, 365, 3, 1.3
SETTINGS = '[gate]\nmode = "off"\n[reward]\nattribution_window_hours = 1.0\n[training]\nwindow_days = 1.0\nminimum_rows = 100\n'


class Logs:
    """A day's decisions (one of each user) and events (three behind each of their two queries), and the same for any other day."""

    def __init__(self, clusters: dict[str, list[str]], rng: np.random.Generator) -> None:
        made, events = [], []
        for number, (user, ids) in enumerate(clusters.items()):
            at = NOW + int(rng.integers(MICROSECONDS_PER_DAY - 60 * MICROSECONDS_PER_MINUTE))
            drawn = [
                Query(cluster_id=str(cluster), item_id=f"{cluster}-q", propensity=0.4) for cluster in rng.choice(ids, 2, replace=False)
            ]
            features = rng.random((CLUSTERS, len(FEATURE_NAMES))).astype("<f4").tobytes()
            made.append(_decision(number, user, at, ids, features, drawn))
            for query in drawn:
                for place, action in enumerate(("impression", "impression", "repin")):
                    item = f"{query.cluster_id}-{place % 2}"
                    events.append((f"d{number}", user, query.cluster_id, query.item_id, item, action, at + (place + 1) * 1_000_000))
        columns = [pa.array(column) for column in zip(*events, strict=True)]
        self._decisions = decision_table(made)
        self._events = pa.table([pa.array(map(str, range(len(events)))), *columns[:-1], columns[-1].cast(TIME)], FEEDBACK)

    def write(self, data: Path, day: int) -> None:
        """Write what happened and arrived on this day, counted from `NOW`."""
        folder = datetime.fromtimestamp(NOW / 1e6 + day * 86_400, UTC).date().isoformat()
        for log, table, ids, time_column in (
            ("decisions", self._decisions, ["decision_id"], "decided_at"),
            ("feedback", self._events, ["event_id", "decision_id"], "occurred_at"),
        ):
            for column in ids:
                values = pa.array([f"{day}-{value}" for value in table[column].to_pylist()])
                table = table.set_column(table.schema.get_field_index(column), column, values)  # noqa: PLW2901 -- the same rows, of that day
            place = table.schema.get_field_index(time_column)
            moment = pa.array(table[time_column].cast(pa.int64()).to_numpy() + day * MICROSECONDS_PER_DAY).cast(TIME)
            write_table(table.set_column(place, time_column, moment), data / log / folder / "0.parquet", checked=True)


def _decision(number: int, user: str, at: int, ids: list[str], features: bytes, drawn: list[Query]) -> Decision:
    return Decision(
        decision_id=f"d{number}",
        user_id=user,
        decided_at=at,
        policy="bandit",
        model_version="1",
        k=2,
        seed=number,
        feature_version=FEATURE_VERSION,
        cluster_ids=ids,
        features=features,
        scores=[0.1] * CLUSTERS,
        quotas=[0.4] * CLUSTERS,
        caps=[10.0] * CLUSTERS,
        queries=drawn,
        context={},
        degraded=False,
    )


def child(folder: Path, day: int) -> None:
    from training.retrain import retrain  # noqa: PLC0415 -- the parent does without Feast and MLflow

    settings = load_settings(folder / DEFAULT_FILE)
    end, steps = NOW + (day + 1) * MICROSECONDS_PER_DAY, [("", time.perf_counter())]
    result = retrain(settings, as_of=end, now=end, say=lambda step: steps.append((step, time.perf_counter())))
    seconds = time.perf_counter() - steps[0][1]
    if result.folded is None or result.joined is None or result.trained is None or (day and result.folded.full):
        raise SystemExit(f"this was no retrain of a day's news: {result}")
    later = [*[moment for _, moment in steps[2:]], time.perf_counter()]
    for (step, moment), after in zip(steps[1:], later, strict=True):
        print(f"  {step}: {after - moment:.2f} s", file=sys.stderr)
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def _retrained(folder: Path, day: int) -> tuple[float, float]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.day_after_a_year", str(folder), str(day)]
    seconds, megabytes = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-2:]
    print(f"{folder.name} days behind, day {day}: {float(seconds):.2f} s, {float(megabytes):.0f} MB", file=sys.stderr)
    return float(seconds), float(megabytes)


def main() -> None:
    os.environ.pop(URL_VARIABLE, None)
    rng, stamp = np.random.default_rng(1), datetime.fromtimestamp(NOW / 1e6 - 400 * 86_400, UTC).replace(tzinfo=None)
    profiles = [profile_and_rewards(f"user-{user}", CLUSTERS, rng, stamp)[0] for user in range(USERS)]
    logs = Logs({row[names.JOIN_KEY]: row[names.CLUSTER_IDS] for row in profiles}, rng)
    figures: dict[int, list[tuple[float, float]]] = {SHORT: [], LONG: []}
    with tempfile.TemporaryDirectory() as root, contextlib.ExitStack() as stack:
        for days in figures:
            folder = Path(root) / str(days)
            create(folder, f'redis_url = "{stack.enter_context(local_redis())}"\n{SETTINGS}')
            settings = load_settings(folder / DEFAULT_FILE)
            write_table(pa.Table.from_pylist(profiles, USER_CLUSTERS), settings.feature_repo_path / names.USER_CLUSTERS_PATH / "a.parquet")
            for day in range(1 - days, 1):
                logs.write(settings.data_path, day)
            _retrained(folder, 0)
        for day in range(1, RUNS + 1):
            for days, values in figures.items():
                logs.write(load_settings(Path(root) / str(days) / DEFAULT_FILE).data_path, day)
                values.append(_retrained(Path(root) / str(days), day))
    seconds, megabytes = ({days: [value[place] for value in values] for days, values in figures.items()} for place in (0, 1))
    for name, of in (("retrain_growth", seconds), ("retrain_growth_memory", megabytes)):
        ratio = statistics.median(of[LONG]) / statistics.median(of[SHORT])
        detail = {"users": USERS, "days": [SHORT, LONG], "short": of[SHORT], "long": of[LONG]}
        Result(name=name, value=ratio, unit="ratio", better="lower", limit=LIMIT, detail=detail).write()
        print(name, ratio)


if __name__ == "__main__":
    child(Path(sys.argv[1]), int(sys.argv[2])) if len(sys.argv) > 1 else main()
