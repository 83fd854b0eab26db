"""The story of the published system, through the real path: a large Recipes cluster fades, a small Furniture cluster grows.

Forty users like the one in the story; each has 60 actions on recipes, 12 on furniture and 1 on travel. Last week they engaged with
recipes. Then they move house: recipes are shown and passed over, furniture is not. Travel queries bring nothing back, so that cluster
stays without evidence. Each day every user makes one request, the feed reports back, and everything is retrained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from math import floor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bandit.records import Feedback
from bandit.settings.load import DEFAULT_FILE, load_settings
from bandit.types import MICROSECONDS_PER_DAY, MICROSECONDS_PER_MINUTE
from serving import QuerySelector, Selection
from training.clustering.cluster import cluster
from training.deployment import create
from training.features.materialize import materialize
from training.logs.feedback import append_feedback
from training.logs.schemas import ENGAGEMENTS, TIME
from training.retrain import retrain

HERO = "user-00"
USERS = [f"user-{number:02}" for number in range(40)]
TOPICS = ("recipes", "furniture", "travel")
ACTIONS = (60, 12, 1)
QUERIES = 6
IMPRESSIONS_PER_QUERY = 4
START = round(datetime(2026, 1, 5, 12, tzinfo=UTC).timestamp() * 1e6)
ROUNDS = 6
LAST_WEEK = {"recipes": 0.6, "furniture": 0.25}  # part of the impressions that are repinned
THIS_WEEK = {"recipes": 0.0, "furniture": 0.6}
SETTINGS = """
redis_url = "{redis_url}"
[reward]
weights = {{ repin = 1.0, hide = -1.0 }}
attribution_window_hours = 1.0
[clustering]
topics = 3
processes = 1
[policy]
name = "{policy}"
[training]
minimum_rows = 50
[gate]
mode = "off"
[serving]
deadline_ms = 1000.0
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one request of the story's user looked like: expected queries by topic, and the policy and model that made them."""

    number: int
    quotas: dict[str, float]
    policy: str
    model_version: str

    def share(self, topic: str) -> float:
        """The topic's part of the request."""
        return self.quotas[topic] / sum(self.quotas.values())


def play(
    folder: Path, redis_url: str, policy: str, *, rounds: int = ROUNDS, seed: int = 1, show: Callable[[Round], None] = lambda _: None
) -> list[Round]:
    """Play the story under a policy in a new deployment; the database behind `redis_url` must be empty.

    Round 0 is last week, and rounds 1 to `rounds` are the days after.
    """
    create(folder, SETTINGS.format(redis_url=redis_url, policy=policy))
    settings = load_settings(folder / DEFAULT_FILE)
    rng = np.random.default_rng(seed)
    write_history(folder, rng, START)
    cluster(settings, history=folder / "history.parquet", embeddings=folder / "items.parquet", as_of=START)
    materialize(settings, until=START)
    played = []
    seen: Counter[tuple[str, str]] = Counter()
    with QuerySelector.open(folder / DEFAULT_FILE) as selector:
        for number in range(rounds + 1):
            now = START + (number + 1) * MICROSECONDS_PER_DAY
            events: list[Feedback] = []
            for place, user_id in enumerate(USERS):
                at = now + place
                selection = selector.select(user_id, QUERIES, {"surface": "home"}, now=at, seed=int(rng.integers(2**62)))
                if user_id == HERO:
                    quotas = {topic_of(cluster_id): quota for cluster_id, quota in selection.quotas.items()}
                    played.append(Round(number=number, quotas=quotas, policy=selection.policy, model_version=selection.model_version))
                    show(played[-1])
                events += feedback(selection, user_id, at + MICROSECONDS_PER_MINUTE, THIS_WEEK if number else LAST_WEEK, seen)
            append_feedback(settings, events, f"day-{number}")
            retrain(settings, as_of=now + MICROSECONDS_PER_DAY // 2, now=now + MICROSECONDS_PER_DAY)
            selector.refresh_model()
    return played


def feedback(selection: Selection, user_id: str, now: int, repins: Mapping[str, float], seen: Counter[tuple[str, str]]) -> list[Feedback]:
    """Four impressions for each query but travel's; exactly the given part of a cluster's impressions is repinned, spread evenly."""
    events = []
    for query in selection.queries:
        topic = topic_of(query.cluster_id)
        for shown in range(IMPRESSIONS_PER_QUERY if topic in repins else 0):
            before, after = (floor((seen[user_id, topic] + step) * repins[topic] + 1e-9) for step in (0, 1))
            seen[user_id, topic] += 1
            item = f"{query.item_id}/neighbour-{shown}"
            events += [
                Feedback(
                    event_id=f"{selection.decision_id}/{item}/{action}",
                    decision_id=selection.decision_id,
                    user_id=user_id,
                    cluster_id=query.cluster_id,
                    query_id=query.item_id,
                    item_id=item,
                    action=action,
                    occurred_at=now,
                )
                for action in (["impression", "repin"] if after > before else ["impression"])
            ]
    return events


def topic_of(cluster_id: str) -> str:
    """The topic that a cluster's id, the item of its medoid, is named after."""
    return cluster_id.partition("-")[0]


def write_history(folder: Path, rng: np.random.Generator, start: int) -> None:
    """Engagements of the three weeks before `start`, and the embeddings of their items, as files of the deployment."""
    items, vectors = [], []
    for topic, count in enumerate(ACTIONS):
        for number in range(count):
            items.append(f"{TOPICS[topic]}-{number}")
            vector = np.eye(8)[topic] + rng.normal(0.0, 0.02, 8)
            vectors.append((vector / np.linalg.norm(vector)).tolist())
    pq.write_table(pa.table({"item_id": items, "embedding": pa.array(vectors, pa.list_(pa.float32()))}), folder / "items.parquet")
    rows = [(user_id, item) for user_id in USERS for item in items]
    table = pa.table(
        {
            "user_id": [user_id for user_id, _ in rows],
            "item_id": [item for _, item in rows],
            "action": ["repin"] * len(rows),
            "occurred_at": pa.array(start - rng.integers(1, 20, len(rows)) * MICROSECONDS_PER_DAY, TIME),
        },
        schema=ENGAGEMENTS,
    )
    pq.write_table(table, folder / "history.parquet")
