"""A deployment whose feedback and decisions are folded by consumers that the test moves step by step."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from bandit.records import Decision, Feedback
from bandit.rewards.lineage import Reclustering, owners_now
from feature_repo import names
from feature_repo.connection import connect
from feature_repo.keys import PARTITIONS
from tests.conftest import Deployment
from tests.tables_made import DAY, HOUR, KEYS, MINUTE, decision, feedback
from training.features.feature_store import online_rows
from training.features.online_rows import RewardRows
from training.stream.consumer import Consumer
from training.stream.metrics import StreamMetrics
from training.stream.state import StreamState
from training.stream.verify import verify

WEIGHTS = {"impression": 0.0, "repin": 1.0, "click": 0.5, "closeup": 0.25, "hide": -1.0}
COUNTERS = ("entries", "duplicates", "dead_letters", "failures")
SESSION, LONG = 30 * MINUTE, 14 * DAY


class Killed(BaseException):
    """The process is gone: nothing of it catches this."""


class Streamed:
    """Consumers of one deployment, and what is in its streams, logs and rows."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment, self.settings, self.redis = deployment, deployment.settings, deployment.redis
        self.now = time.time_ns() // 1000
        self.rows: RewardRows = online_rows(self.settings, self.redis)
        self.metrics, self.before = StreamMetrics(), dict.fromkeys(COUNTERS, 0)

    def consumer(self) -> Consumer:
        client = connect(self.settings.redis_url, timeout=10.0)
        self.metrics = StreamMetrics()
        self.before = {name: self.metrics.total(getattr(self.metrics, name)) for name in COUNTERS}
        return Consumer(self.settings, client, online_rows(self.settings, client), self.metrics)

    def state(self) -> StreamState:
        """What consumers keep in Redis, read and changed without one."""
        folding = self.settings.reward.sums_definition().fingerprint
        state = StreamState(self.redis, KEYS, window=self.settings.stream.window, folding=folding)
        state.prepare()
        return state

    def total(self, name: str) -> int:
        """What a counter of the newest consumer has come to. Feast lets prometheus_client keep the values of a process for ever."""
        return self.metrics.total(getattr(self.metrics, name)) - self.before[name]

    def let_leases_run_out(self) -> None:
        self.redis.delete(KEYS.workers, *(KEYS.partition(number).lease for number in range(PARTITIONS)))

    # -- what comes in

    def events(self, count: int, *, seed: int = 0, users: int = 20) -> list[Feedback]:
        """Up to a day late."""
        rng = np.random.default_rng(seed)
        ages = np.where(rng.random(count) < 0.5, rng.integers(0, HOUR, count), rng.integers(0, DAY, count))
        return [
            feedback(
                f"e{seed}-{number}",
                at=self.now - int(ages[number]),
                user_id=f"u{rng.integers(users)}",
                cluster_id=f"c{rng.integers(4)}",
                action=str(rng.choice(list(WEIGHTS), p=[0.6, 0.1, 0.1, 0.1, 0.1])),
            )
            for number in range(count)
        ]

    def decisions(self, count: int, *, seed: int = 0, users: int = 20) -> list[Decision]:
        rng = np.random.default_rng(seed)
        drawn = [("c0", "x"), ("c1", "y"), ("c0", "z")]
        return [
            decision(
                1000 * seed + number,
                at=self.now - int(rng.integers(0, DAY)),
                user_id=f"u{rng.integers(users)}",
                drawn=drawn[: 1 + number % 3],
            )
            for number in range(count)
        ]

    def send(self, records: Iterable[Feedback | Decision | Reclustering]) -> None:
        pipeline = self.redis.pipeline(transaction=False)
        for record in records:
            of = KEYS.of_user(record.user_id)
            name = names.LINEAGE_FIELD if isinstance(record, Reclustering) else names.RECORD_FIELD
            pipeline.xadd(of.decisions if isinstance(record, Decision) else of.feedback, {name: msgspec.msgpack.encode(record)})
        pipeline.execute()

    # -- what became of it

    def drain(self, consumer: Consumer) -> int:
        """Steps until nothing waits; the number of entries."""
        total = 0
        while True:
            count = consumer.step(block=False)
            total += count
            if not count:
                return total

    def waiting(self) -> int:
        pipeline = self.redis.pipeline(transaction=False)
        for number in range(PARTITIONS):
            pipeline.xlen(KEYS.partition(number).feedback)
            pipeline.xlen(KEYS.partition(number).decisions)
        return sum(pipeline.execute())

    def archived(self, log: str = "feedback", column: str = "event_id") -> list[Any]:
        files = sorted((self.settings.data_path / log).rglob("*.parquet"))
        return [value for file in files for value in pq.read_table(file)[column].to_pylist()]

    def dead(self) -> list[str]:
        """Reasons in Redis' dead-letter streams."""
        keys = self.redis.scan_iter(KEYS.every_partition.dead_letters, count=1000)
        return [fields[b"reason"].decode() for key in keys for _, fields in self.redis.xrange(key)]

    def assert_exact(self, events: Sequence[Feedback], decisions: Sequence[Decision] = (), history: Sequence[Reclustering] = ()) -> None:
        """Every row is the formula over these records, each once; and `verify` says the same of stream, batch and rows."""
        terms: dict[str, list[tuple[str, str, int]]] = defaultdict(list)
        for event in {event.event_id: event for event in events}.values():
            terms[event.user_id].append((event.cluster_id, event.action, event.occurred_at))
        for made in {made.decision_id: made for made in decisions}.values():
            terms[made.user_id] += [(query.cluster_id, "", made.decided_at) for query in made.queries]
        for user, added in terms.items():
            row = self.rows.read(user)
            assert row is not None, user
            assert row.as_of >= max(at for _, _, at in added)
            changes = [change for change in history if change.user_id == user]
            expected = {cluster: np.zeros(5) for cluster in row.cluster_ids}
            for cluster_id, action, at in added:
                session, long = 2.0 ** ((at - row.as_of) / SESSION), 2.0 ** ((at - row.as_of) / LONG)
                shown, weight = float(action == "impression"), WEIGHTS.get(action, 0.0)
                cells = np.array([shown * session, weight * session, shown * long, weight * long, session * (action == "")])
                for credited, share in owners_now(cluster_id, at, changes).items():
                    expected[credited] += share * cells
            for place, cluster_id in enumerate(row.cluster_ids):
                assert row.sums.values[:, place] == pytest.approx(expected[cluster_id], rel=1e-9, abs=1e-12), (user, cluster_id)
        verified = verify(self.settings)
        assert verified.differing == {}
        assert verified.users == len(terms)
        assert verified.waiting == 0
        assert verified.largest <= 1e-9
