"""The stream: how soon an event shows in a user's quotas, how many events one consumer folds, and how much of that is Redis' own work.

`stream_visible_p99_ms`: while 500 events a second come in, an event is recorded, and `select` is called until the user's quotas have
changed; Redis, the consumer, the load and the selector share this machine.
`stream_events_per_s`: one consumer on a backlog of events of 5,000 users with 20 clusters each, in no order.
`stream_vs_floor`: the same, against plain redis-py pipelines that read and write the same keys and bytes and compute nothing.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import redis
from redis.client import Pipeline

from bandit.records import Feedback
from bandit.settings.load import DEFAULT_FILE, Settings, load_settings
from benchmarks.result import Result
from feature_repo import names
from feature_repo.connection import connect
from feature_repo.keys import PARTITIONS, Keys
from serving import FeedbackLog, QuerySelector
from training.deployment import create
from training.features.feature_store import online_rows
from training.features.materialize import materialize
from training.local_redis import URL_VARIABLE, local_redis
from training.logs.schemas import USER_CLUSTERS
from training.logs.tables import write_table
from training.stream.consumer import Consumer

USERS, CLUSTERS = 5_000, 20
ROUNDS, EVENTS = 5, 20_000  # a round is folded by the consumer, then by the floor
LOAD, PROBES = 500, 400  # events a second; events whose way is measured
ACTIONS = ("impression",) * 5 + ("repin", "click", "hide")
SETTINGS = """
redis_url = "{url}"
[policy]
name = "query_reward"
[serving]
deadline_ms = 1000.0
[stream]
enabled = true
max_backlog = 1000000
"""


def events(rng: np.random.Generator, count: int, start: int) -> list[Feedback]:
    now = time.time_ns() // 1000
    users, clusters = rng.integers(0, USERS, count).tolist(), rng.integers(0, CLUSTERS, count).tolist()
    actions, ages = rng.integers(0, len(ACTIONS), count).tolist(), rng.integers(0, 3_600_000_000, count).tolist()
    return [event(f"e{start + n}", users[n], clusters[n], ACTIONS[actions[n]], now - ages[n]) for n in range(count)]


def event(event_id: str, user: int, cluster: int, action: str, at: int) -> Feedback:
    return Feedback(
        event_id=event_id,
        decision_id="019aaaaa-0000-7000-8000-000000000000",
        user_id=f"user-{user}",
        cluster_id=f"cluster-{cluster}",
        query_id=f"item-{cluster}",
        item_id=f"neighbour-{event_id}",
        action=action,
        occurred_at=at,
    )


class Recorder(redis.Redis):
    """A client that remembers what was sent and read, for the floor to do again."""

    steps: list[list[tuple[Any, ...]]]

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Pipeline:  # noqa: ANN401, D102, FBT001, FBT002
        pipeline, execute = super().pipeline(transaction, shard_hint), Pipeline.execute

        def recorded(raise_on_error: bool = True) -> list[Any]:  # noqa: FBT001, FBT002
            self.steps.append([command for command, _ in pipeline.command_stack])
            return execute(pipeline, raise_on_error)

        pipeline.execute = recorded
        return pipeline

    def xread(self, streams: Any, count: int | None = None, block: int | None = None) -> Any:  # noqa: ANN401, D102
        self.steps.append([("XREAD", dict(streams), count)])
        return super().xread(streams, count, block)


def plain(command: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """The reads and writes of a command, without the questions that our scripts ask first."""
    if command[0] != "EVALSHA":
        return [command]
    keys, arguments = command[3 : 3 + command[2]], command[3 + command[2] :]
    if len(keys) == 1:  # a row
        return [("HSET", keys[0], *arguments)]
    ids, pairs = arguments[7 : 7 + arguments[5]], arguments[7 + arguments[5] + 2 * arguments[6] :]
    state = ("HSET", keys[1], "commits", arguments[1], "feedback", arguments[2], "decisions", arguments[3])
    sets = [("SET", key, pairs[2 * number + 1]) for number, key in enumerate(keys[5:])]
    dirty = [("DEL", keys[2]), ("SADD", keys[2], *pairs[::2])] if pairs else []
    return [state, *dirty, ("SADD", keys[3], *ids), ("EXPIRE", keys[3], arguments[4]), *sets]


def floor(client: redis.Redis, steps: Sequence[Sequence[tuple[Any, ...]]]) -> float:
    prepared = [[part for command in step for part in plain(command)] for step in steps]
    started = time.perf_counter()
    for step in prepared:
        if step and step[0][0] == "XREAD":
            client.xread(step[0][1], count=step[0][2])
            continue
        pipeline = client.pipeline(transaction=False)
        for command in step:
            pipeline.execute_command(*command)
        pipeline.execute()
    return time.perf_counter() - started


def drain(consumer: Consumer) -> int:
    folded = 0
    while entries := consumer.step(block=False):
        folded += entries
    return folded


def throughput(folder: Path, url: str, other: str) -> None:
    settings = deployment(folder, url)
    client = Recorder.from_url(url, socket_timeout=10)
    client.steps = []
    consumer = Consumer(settings, client, online_rows(settings, client))
    consumer.step(block=False)
    copy = redis.Redis.from_url(other, socket_timeout=10)
    rng, rates, ratios = np.random.default_rng(1), [], []
    logs = FeedbackLog(connect(url), settings), FeedbackLog(connect(other), settings)
    for number in range(ROUNDS):
        some = events(rng, EVENTS, number * EVENTS)
        for log in logs:
            log.record(some)
        # Ids of the copy's entries are its own: reading from its beginning costs the floor no less than reading on.
        client.steps.clear()
        started = time.perf_counter()
        folded = drain(consumer)
        seconds = time.perf_counter() - started
        if folded != EVENTS:
            raise RuntimeError(f"{folded} of {EVENTS} events were folded")
        steps = [step for step in client.steps if step]
        rates.append(folded / seconds)
        ratios.append(floor(copy, steps) / seconds)
        for partition in range(PARTITIONS):
            copy.delete(Keys(names.PROJECT).partition(partition).feedback)
        print(f"round {number + 1} of {ROUNDS}: {rates[-1]:,.0f} events/s, {ratios[-1]:.2f} of the floor", file=sys.stderr)
    consumer.close()
    detail = {"users": USERS, "clusters_per_user": CLUSTERS, "events_per_round": EVENTS, "events_per_s": rates, "of_floor": ratios}
    write("stream_events_per_s", statistics.median(rates), "1/s", "higher", 5000.0, detail)
    write("stream_vs_floor", statistics.median(ratios), "ratio", "higher", 0.5, detail)


def visibility(folder: Path, url: str) -> None:
    settings = deployment(folder, url)
    with running(folder), subprocess.Popen([sys.executable, "-m", "benchmarks.stream", "load", str(folder)]) as load:
        try:
            waits = [1000.0 * wait for wait in probes(settings, folder)]
        finally:
            load.terminate()
    p50, p99 = np.quantile(waits, [0.5, 0.99])
    detail = {"events_per_s": LOAD, "probes": len(waits), "p50_ms": p50, "max_ms": max(waits)}
    print(f"visible after {p50:.1f} ms (median), {p99:.1f} ms (p99), at {LOAD} events/s", file=sys.stderr)
    write("stream_visible_p99_ms", float(p99), "ms", "lower", 100.0, detail)


def probes(settings: Settings, folder: Path) -> Iterator[float]:
    rng = np.random.default_rng(2)
    log = FeedbackLog(connect(settings.redis_url), settings)
    with QuerySelector.open(folder / DEFAULT_FILE) as selector:
        for number in range(PROBES):
            user = USERS + number  # nobody else's events
            before = selector.select(f"user-{user}", 10).quotas
            log.record([event(f"first-{number}-{n}", user, n, "impression", time.time_ns() // 1000) for n in range(2)])
            started = time.perf_counter()
            log.record([event(f"probe-{number}", user, 0, "repin", time.time_ns() // 1000)])
            while selector.select(f"user-{user}", 10).quotas == before:
                if time.perf_counter() - started > 10.0:
                    raise TimeoutError("an event did not show within ten seconds")
            yield time.perf_counter() - started
            time.sleep(rng.uniform(0.01, 0.05))


def load(folder: Path) -> None:
    settings = load_settings(folder / DEFAULT_FILE)
    log, rng, start = FeedbackLog(connect(settings.redis_url), settings), np.random.default_rng(3), time.monotonic()
    for number in range(120 * LOAD // 10):  # two minutes at most
        log.record(events(rng, 10, 10_000_000 + 10 * number))
        time.sleep(max(start + number * 10 / LOAD - time.monotonic(), 0.0))


@contextlib.contextmanager
def running(folder: Path) -> Iterator[None]:
    """A consumer in a process of its own, once it owns every partition."""
    command = [sys.executable, "-m", "query_rewards", "stream", "--settings", str(folder / DEFAULT_FILE)]
    client = connect(load_settings(folder / DEFAULT_FILE).redis_url)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while not all(client.exists(Keys(names.PROJECT).partition(partition).state) for partition in range(PARTITIONS)):
                if process.poll() is not None:
                    raise RuntimeError("the consumer did not start")
                time.sleep(0.1)
            yield
        finally:
            process.terminate()


def deployment(folder: Path, url: str) -> Settings:
    create(folder, SETTINGS.format(url=url))
    settings = load_settings(folder / DEFAULT_FILE)
    now = time.time_ns() // 1000
    clusters = [f"cluster-{number}" for number in range(CLUSTERS)]
    row = {
        names.CLUSTER_IDS: clusters,
        names.TOPIC_IDS: [0] * CLUSTERS,
        names.TOPIC_HISTORY: [0.0] * CLUSTERS,
        names.ITEM_COUNTS: [3] * CLUSTERS,
        names.ACTION_TYPES: ["impression", "repin"],
        names.ACTION_COUNTS: [1.0] * (2 * CLUSTERS),
        names.IMPORTANCE: [1.0] * CLUSTERS,
        names.LAST_ACTION_AT: [now] * CLUSTERS,
        names.QUERY_ITEMS: [f"{cluster}-{item}" for cluster in clusters for item in range(3)],
        names.QUERY_WEIGHTS: [1.0] * (3 * CLUSTERS),
        names.QUERY_OFFSETS: list(range(0, 3 * CLUSTERS + 1, 3)),
        names.TIMESTAMP: now,
    }
    rows = [{names.JOIN_KEY: f"user-{user}", **row} for user in range(USERS, USERS + PROBES)]
    write_table(pa.Table.from_pylist(rows, USER_CLUSTERS), settings.feature_repo_path / names.USER_CLUSTERS_PATH / "a.parquet")
    materialize(settings, until=now)
    return settings


def write(name: str, value: float, unit: str, better: Any, limit: float, detail: dict[str, Any]) -> None:  # noqa: ANN401
    Result(name=name, value=value, unit=unit, better=better, limit=limit, detail=detail).write()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, local_redis() as url:
        os.environ.pop(URL_VARIABLE, None)
        base = url.rsplit("/", 1)[0]
        throughput(Path(folder) / "throughput", f"{base}/1", f"{base}/2")
        visibility(Path(folder) / "visible", f"{base}/3")


if __name__ == "__main__":
    load(Path(sys.argv[2])) if sys.argv[1:2] == ["load"] else main()
