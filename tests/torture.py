"""`make torture`: the stream under everything that can happen to it. `python -m tests.torture [--seed N] [--short]`.

Each part runs consumers in processes of their own against a real Redis with `appendonly yes` and `appendfsync always`, does something
terrible to them, and then asks: is every event that was confirmed counted exactly once, is none lost, and is each user's row in the online
store equal to the sums? Consumers are forked from a parent that has imported everything, because importing takes seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import redis

from bandit.errors import QueryRewardsError
from bandit.records import Feedback
from bandit.settings.load import DEFAULT_FILE, Settings, load_settings
from feature_repo.keys import PARTITIONS, partition
from serving import FeedbackLog
from tests.ports import free_port
from tests.tables_made import KEYS
from training.deployment import create
from training.features.materialize import materialize
from training.local_redis import redis_binary
from training.stream.metrics import StreamMetrics
from training.stream.run import open_consumer
from training.stream.verify import Verified, verify

fork = multiprocessing.get_context("fork")

USERS, CLUSTERS = 60, 8
ACTIONS = ("impression", "impression", "impression", "repin", "hide")
SETTINGS = """
redis_url = "redis://127.0.0.1:{port}/0"
[reward]
weights = {{ repin = 1.0, hide = -1.0 }}
[stream]
enabled = true
lease_seconds = 0.4
archive_seconds = {archive}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How often each terrible thing is done."""

    calls: str = "every call"  # or only "every write": of sums and of rows
    kills: int = 200
    restarts: int = 20
    cuts: int = 100
    freezes: int = 20
    events: int = 1_000_000


SHORT = Sizes(calls="every write", kills=8, restarts=2, cuts=3, freezes=4, events=20_000)


class Server:
    """A Redis that survives its own death: same port, same folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        folder.mkdir(parents=True)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """The append-only file, or the newest part of it."""
        return max(
            (file for file in self.folder.rglob("*.aof") if file.stat().st_size >= 0), key=lambda file: (".incr." in file.name, file.name)
        )

    def start(self) -> None:
        command = [redis_binary(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""]
        command += ["--appendonly", "yes", "--appendfsync", "always", "--aof-load-truncated", "yes", "--auto-aof-rewrite-percentage", "0"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        client = redis.Redis(port=self.port)
        for _ in range(1000):
            with contextlib.suppress(redis.RedisError):
                client.ping()
                return
            time.sleep(0.01)
        raise RuntimeError("Redis did not come up")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """One deployment, its server, and a stream of events that anybody can make again from their numbers."""

    folder: Path
    server: Server
    settings: Settings
    seed: int
    start: int
    confirmed: Synchronized[int]
    generation: int = 10**9  # events until others take the users' place, so that nothing later mends what was left of theirs
    partitions: int = PARTITIONS  # that the users fall into: a consumer makes some calls once for each

    def user(self, name: str) -> str:
        """The user of that name whose partition is one of ours."""
        numbered = (f"{name}-{number}" for number in itertools.count())
        return next(user_id for user_id in numbered if partition(user_id) < self.partitions)

    def event(self, number: int) -> Feedback:
        rng = random.Random((self.seed << 32) + number)
        return Feedback(
            event_id=f"event-{number}",
            decision_id="019aaaaa-0000-7000-8000-000000000000",
            user_id=self.user(f"user-{number // self.generation}-{rng.randrange(USERS)}"),
            cluster_id=f"cluster-{rng.randrange(CLUSTERS)}",
            query_id="query",
            item_id="item",
            action=rng.choice(ACTIONS),
            occurred_at=self.start - rng.randrange(86_400_000_000),
        )


@contextlib.contextmanager
def world(seed: int, *, archive: float = 0.1, generation: int = 10**9, partitions: int = PARTITIONS) -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="query-rewards-torture-") as name:
        folder = Path(name)
        server = Server(folder / "redis")
        server.start()
        try:
            create(folder / "deployment", SETTINGS.format(port=server.port, archive=archive))
            settings = load_settings(folder / "deployment" / DEFAULT_FILE)
            now = time.time_ns() // 1000
            materialize(settings, until=now)
            confirmed: Any = fork.Value("q", 0)
            yield World(
                folder=folder,
                server=server,
                settings=settings,
                seed=seed,
                start=now,
                confirmed=confirmed,
                generation=generation,
                partitions=partitions,
            )
        finally:
            server.kill()


def consume(settings: Settings) -> None:
    """A consumer, until somebody ends it."""
    open_consumer(settings, StreamMetrics()).run(lambda: False)


def feed(made: World, per_second: float, limit: int) -> None:
    """Events in the order of their numbers, one in twenty once more; what was not confirmed is sent again."""
    rng = random.Random(made.seed)
    log = FeedbackLog(redis.Redis(port=made.server.port, socket_timeout=2.0, retry=None), made.settings)
    while made.confirmed.value < limit:
        first = made.confirmed.value
        some = [made.event(number) for number in range(first, min(first + 20, limit))]
        again = [made.event(rng.randrange(first + 1))]
        try:
            log.record(some + again)
        except QueryRewardsError:
            time.sleep(0.02)
            continue
        made.confirmed.value = first + len(some)
        time.sleep(20 / per_second)


def started(work: Callable[..., None], *arguments: Any) -> BaseProcess:
    process = fork.Process(target=_quietly, args=(work, *arguments))
    process.start()
    return process


def _quietly(work: Callable[..., None], *arguments: Any) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        logging.disable(logging.CRITICAL)
        work(*arguments)


def ended(process: BaseProcess) -> None:
    process.kill()
    process.join()


def settle(made: World) -> Verified:
    """Let a consumer finish what waits, and hold everything against the batch fold. Raises: AssertionError."""
    drain(made.settings)
    found = verify(made.settings)
    assert not found.differing, f"{len(found.differing)} users differ, {next(iter(found.differing.items()))}"
    assert found.waiting == 0, found.waiting
    counted = set(
        ds.dataset(list((made.settings.data_path / "feedback").rglob("*.parquet"))).to_table(columns=["event_id"])["event_id"].to_pylist()
    )
    sent = {f"event-{number}" for number in range(made.confirmed.value)}
    assert sent <= counted, f"{len(sent - counted)} confirmed events are lost"
    return found


def drain(settings: Settings) -> None:
    """Fold until nothing waits, in a process of its own."""
    process = started(_drain, settings)
    process.join()
    assert process.exitcode == 0, process.exitcode


def _drain(settings: Settings) -> None:
    metrics = StreamMetrics()
    consumer = open_consumer(settings, metrics)
    consumer.run(lambda: metrics.idle and consumer.partitions == PARTITIONS)


def kills_at_random(sizes: Sizes, seed: int) -> str:
    """SIGKILL at random moments, while events come in."""
    rng = random.Random(seed)
    with world(seed) as made:
        feeder = started(feed, made, 2000.0, 10**9)
        for _ in range(sizes.kills):
            consumer = started(consume, made.settings)
            time.sleep(rng.uniform(0.0, 0.9))
            ended(consumer)
        ended(feeder)
        found = settle(made)
        return (
            f"{sizes.kills} kills at random moments, {made.confirmed.value:,} events, {found.users} users, difference {found.largest:.1e}"
        )


def kills_between_calls(sizes: Sizes, seed: int) -> str:
    """SIGKILL once before each call to Redis or the disk, and once after it: of a consumer that goes on, and of one that begins anew."""
    kills, events, largest = 0, 0, 0.0
    for anew in (False, True):
        with world(seed, archive=1e-6, generation=10**9 if anew else 120, partitions=8) as made:
            drain(made.settings)
            for step in range(10**9 if sizes.calls == "every call" else 8):
                started(feed, made, 1e9, made.confirmed.value + 120).join()
                if anew:
                    redis.Redis(port=made.server.port).delete(*(KEYS.partition(number).state for number in range(PARTITIONS)))
                consumer = started(_killed_at, made.settings, step, sizes.calls)
                consumer.join()
                if consumer.exitcode == 0:
                    break
                assert consumer.exitcode == -signal.SIGKILL, consumer.exitcode
                kills += 1
            largest = max(largest, settle(made).largest)
            events += made.confirmed.value
    return f"{kills} kills, before and after {sizes.calls}, {events:,} events, difference {largest:.1e}"


def _killed_at(settings: Settings, step: int, calls: str) -> None:
    """Fold what waits, and die at the given step: an even one is just before a call, an odd one just after it."""
    steps = iter(range(10**9))

    def deadly(call: Callable[..., Any], counts: Callable[..., bool]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            counted = counts(*arguments)
            if counted and next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*arguments, **options)
            if counted and next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapped

    redis.client.Pipeline.execute = deadly(redis.client.Pipeline.execute, _writes if calls == "every write" else _anything)  # type: ignore[method-assign]
    if calls == "every call":
        redis.Redis.execute_command = deadly(redis.Redis.execute_command, _anything)  # type: ignore[method-assign]
        os.fsync = deadly(os.fsync, _anything)
        Path.replace = deadly(Path.replace, _anything)  # type: ignore[method-assign]
    metrics = StreamMetrics()
    consumer = open_consumer(settings, metrics)
    time.sleep(0.5)  # the lease of the one before
    while not (metrics.idle and consumer.partitions == PARTITIONS):
        consumer.step(block=False)
    consumer.close()


def _anything(*_: Any) -> bool:
    return True


def _writes(pipeline: Any, *_: Any) -> bool:
    """Whether a pipeline commits sums or writes rows: the calls of our scripts by their digest."""
    return any(command[0] == "EVALSHA" for command, _ in pipeline.command_stack)


def redis_restarts(sizes: Sizes, seed: int) -> str:
    """Redis is killed and started again, in the middle of the load."""
    rng = random.Random(seed)
    with world(seed) as made:
        feeder, consumer = started(feed, made, 2000.0, 10**9), started(consume, made.settings)
        for _ in range(sizes.restarts):
            time.sleep(rng.uniform(0.3, 1.2))
            made.server.kill()
            time.sleep(rng.uniform(0.0, 0.3))
            made.server.start()
        time.sleep(1.0)
        assert consumer.is_alive()
        ended(feeder)
        ended(consumer)
        found = settle(made)
        return f"{sizes.restarts} restarts of Redis, {made.confirmed.value:,} events, {found.users} users, difference {found.largest:.1e}"


def power_cuts(sizes: Sizes, seed: int) -> str:
    """The append-only file is cut at random bytes after the last confirmed one: unconfirmed events, a commit and its rows.

    Whoever wrote that tail died before it could act on an answer. Afterwards the feed sends again what was not confirmed to it.
    """
    rng = random.Random(seed)
    with world(seed, archive=3600.0) as made:
        started(feed, made, 1e9, 600).join()
        drain(made.settings)
        started(feed, made, 1e9, 1200).join()
        time.sleep(0.1)
        whole = made.server.log.stat().st_size
        started(_unconfirmed, made.settings, made, 200).join()
        tail = made.server.log.stat().st_size - whole
        made.server.kill()
        safe = made.folder / "safe"
        shutil.copytree(made.server.folder, safe / "redis")
        shutil.copytree(made.settings.data_path, safe / "data")
        place = made.server.log.relative_to(made.server.folder)
        largest = 0.0
        for _ in range(sizes.cuts):
            shutil.rmtree(made.server.folder)
            shutil.rmtree(made.settings.data_path)
            shutil.copytree(safe / "redis", made.server.folder)
            shutil.copytree(safe / "data", made.settings.data_path)
            os.truncate(made.server.folder / place, whole + rng.randrange(tail))
            made.server.start()
            made.confirmed.value = 1200
            settle(made)
            started(feed, made, 1e9, 1400).join()
            largest = max(largest, settle(made).largest)
            made.server.kill()
        return f"{sizes.cuts} cuts within the last {tail:,} bytes of the append-only file, difference {largest:.1e}"


def _unconfirmed(settings: Settings, made: World, count: int) -> None:
    log = FeedbackLog(redis.Redis(port=made.server.port), settings)
    log.record([made.event(1200 + number) for number in range(count // 2)])
    consumer = open_consumer(settings, StreamMetrics())
    while consumer.step(block=False):
        pass
    log.record([made.event(1200 + number) for number in range(count // 2, count)])
    os.kill(os.getpid(), signal.SIGKILL)


def freezes(sizes: Sizes, seed: int) -> str:
    """A consumer stops just before it sends something, until its lease is over and another has its partitions, and goes on where it was."""
    rng = random.Random(seed)
    with world(seed) as made:
        feeder = started(feed, made, 2000.0, 10**9)
        consumers = [started(_freezing, made.settings, seed + number) for number in range(2)]
        done, deadline = 0, time.monotonic() + 30.0 * sizes.freezes
        while done < sizes.freezes:
            assert time.monotonic() < deadline, "no consumer froze"
            for frozen in [consumer for consumer in consumers if _state(consumer) == "T"]:
                time.sleep(rng.uniform(0.6, 1.5))
                _signal(frozen, signal.SIGCONT)
                done += 1
            time.sleep(0.02)
        time.sleep(0.5)
        assert all(consumer.is_alive() for consumer in consumers)
        ended(feeder)
        for consumer in consumers:
            ended(consumer)
        found = settle(made)
        return f"{done} freezes past the lease, {made.confirmed.value:,} events, {found.users} users, difference {found.largest:.1e}"


def _freezing(settings: Settings, seed: int) -> None:
    """A consumer that stops itself now and then, just before a pipeline is sent."""
    rng, send = random.Random(seed), redis.client.Pipeline.execute

    def freezing(pipeline: Any, raise_on_error: bool = True) -> Any:
        if _writes(pipeline) and rng.random() < 0.02:
            os.kill(os.getpid(), signal.SIGSTOP)
        return send(pipeline, raise_on_error)

    redis.client.Pipeline.execute = freezing  # type: ignore[method-assign]
    consume(settings)


def _state(process: BaseProcess) -> str:
    """The kernel's letter for what a process does: T when it is stopped."""
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def a_million_events(sizes: Sizes, seed: int) -> str:
    """Shuffled, one in twenty twice, up to a day late: the stream equals the batch fold."""
    rng = random.Random(seed)
    with world(seed) as made:
        consumer = started(consume, made.settings)
        numbers = list(range(sizes.events))
        numbers += rng.sample(numbers, sizes.events // 20)
        rng.shuffle(numbers)
        log = FeedbackLog(redis.Redis(port=made.server.port), made.settings)
        for start in range(0, len(numbers), 2000):
            recorded = log.record([made.event(number) for number in numbers[start : start + 2000]], wait_seconds=60.0)
            assert not recorded.rejected
        made.confirmed.value = sizes.events
        ended(consumer)
        found = settle(made)
        return (
            f"{sizes.events:,} events, {len(numbers) - sizes.events:,} of them twice, {found.users} users, difference {found.largest:.1e}"
        )


def _signal(process: BaseProcess, number: signal.Signals) -> None:
    assert process.pid is not None
    os.kill(process.pid, number)


def kills_between_writes(sizes: Sizes, seed: int) -> str:
    """SIGKILL before each write of every step that changes a model."""
    environment = {} if sizes.calls == "every write" else {"KILL_EVERY": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "tests/training/models/test_kills.py"]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    return f"steps that change a model killed before {'each' if environment else 'a few'} of their writes"


PARTS = (a_million_events, kills_between_calls, kills_at_random, redis_restarts, power_cuts, freezes, kills_between_writes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("parts", nargs="*", help="some of: " + ", ".join(part.__name__ for part in PARTS))
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(2**31)
    print(f"seed {seed}", flush=True)
    for part in PARTS:
        if not given.parts or part.__name__ in given.parts:
            began = time.monotonic()
            print(f"{part(SHORT if given.short else Sizes(), seed)}  ({time.monotonic() - began:.0f} s)", flush=True)
    print("every confirmed event counted once, none lost, every row equal to its sums")


if __name__ == "__main__":
    sys.exit(main())
