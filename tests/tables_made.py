"""Histories, embeddings, decisions and feedback as Parquet files, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from bandit.model.featurize import FEATURE_NAMES, FEATURE_VERSION
from bandit.records import Decision, Feedback, Query, uuid7
from bandit.settings.load import Settings
from bandit.types import MICROSECONDS_PER_DAY, MICROSECONDS_PER_MINUTE
from feature_repo.keys import Keys
from training.logs.decisions import decision_table
from training.logs.schemas import ENGAGEMENTS, FEEDBACK, TIME
from training.logs.tables import write_table

KEYS = Keys("query_rewards")  # of the deployments that tests make
NOW = 1_746_057_600_000_000  # 2025-05-01T00:00:00Z, UTC microseconds
MINUTE, HOUR, DAY = MICROSECONDS_PER_MINUTE, 60 * MICROSECONDS_PER_MINUTE, MICROSECONDS_PER_DAY


def write_history(file: Path, rows: Sequence[tuple[str, str, str, int]]) -> Path:
    """Engagements (user_id, item_id, action, occurred_at) as a file."""
    columns = list(zip(*rows, strict=True)) if rows else [(), (), (), ()]
    pq.write_table(pa.table([pa.array(column, field.type) for column, field in zip(columns, ENGAGEMENTS, strict=True)], ENGAGEMENTS), file)
    return file


def write_embeddings(
    file: Path, item_ids: Sequence[str], vectors: npt.ArrayLike | Sequence[Sequence[float]], topics: Sequence[int] | None = None
) -> Path:
    """Item embeddings as a file; `vectors` may be ragged, to be refused."""
    rows = [np.asarray(row, np.float32).tolist() for row in vectors]  # type: ignore[union-attr]
    columns: dict[str, pa.Array] = {"item_id": pa.array(item_ids, pa.string()), "embedding": pa.array(rows, pa.list_(pa.float32()))}
    if topics is not None:
        columns["topic"] = pa.array(topics, pa.int64())
    pq.write_table(pa.table(columns), file)
    return file


def unit_vectors(count: int, dimensions: int, *, seed: int = 0) -> npt.NDArray[np.float32]:
    """Random directions of length 1."""
    vectors = np.random.default_rng(seed).normal(size=(count, dimensions))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def feedback(event_id: str, *, at: int, **fields: str) -> Feedback:
    """One event: an impression by user `u` of item `x` behind query `q` of cluster `c`, unless the fields say otherwise."""
    plain = {"decision_id": "d", "user_id": "u", "cluster_id": "c", "query_id": "q", "item_id": "x", "action": "impression"}
    return Feedback(event_id=event_id, occurred_at=at, **(plain | fields))


def feedback_table(events: Sequence[Feedback]) -> pa.Table:
    """Events as rows of the log."""
    return pa.table([pa.array([getattr(event, field.name) for event in events], field.type) for field in FEEDBACK], FEEDBACK)


def write_feedback(settings: Settings, events: Sequence[Feedback], *, name: str = "a") -> Path:
    """Events as one file of the feedback log."""
    file = settings.data_path / "feedback" / f"{name}.parquet"
    write_table(feedback_table(events), file)
    return file


def decision(number: int, *, at: int, user_id: str = "u", drawn: Sequence[tuple[str, str]] = (("c", "q"),), **fields: Any) -> Decision:
    """A decision whose candidates are the clusters of `drawn`, pairs (cluster_id, query item); features tell number, cluster and column."""
    clusters = list(dict.fromkeys(cluster for cluster, _ in drawn)) or ["c"]
    n, d = len(clusters), len(FEATURE_NAMES)
    features = (number % 1000) / 1000 + np.arange(n * d, dtype="<f4").reshape(n, d) / (n * d)
    queries = [Query(cluster_id=cluster, item_id=item, propensity=0.5) for cluster, item in drawn]
    plain = {
        "decision_id": uuid7(at, number.to_bytes(10, "big")),
        "policy": "query_reward",
        "model_version": "",
        "k": max(len(queries), 1),
        "seed": number,
        "feature_version": FEATURE_VERSION,
        "cluster_ids": clusters,
        "features": features.astype("<f4").tobytes(),
        "scores": [0.1] * n,
        "quotas": [sum(query.cluster_id == cluster for query in queries) + number / 1e6 for cluster in clusters],
        "caps": [10.0] * n,
        "queries": queries,
        "context": {},
        "degraded": False,
    }
    return Decision(user_id=user_id, decided_at=at, **(plain | fields))


def write_decisions(settings: Settings, decisions: Sequence[Decision], *, name: str = "a") -> Path:
    """Decisions as one file of the decision log."""
    file = settings.data_path / "decisions" / f"{name}.parquet"
    write_table(decision_table(list(decisions)), file)
    return file


def write_training_rows(settings: Settings, start: int, count: int) -> None:
    """Decisions of two draws with an impression each; of every third, one draw brought an engagement."""
    made = [decision(number, at=NOW - 2 * DAY + number, drawn=(("a", "q1"), ("b", "q2"))) for number in range(start, start + count)]
    events = []
    for shown in made:
        for query in shown.queries:
            fields = {"decision_id": shown.decision_id, "cluster_id": query.cluster_id, "query_id": query.item_id}
            actions = ("impression", "repin") if query.cluster_id == "a" and shown.seed % 3 == 0 else ("impression",)
            events += [
                feedback(f"{shown.seed}{query.item_id}{action}", at=shown.decided_at + MINUTE, action=action, **fields)
                for action in actions
            ]
    write_decisions(settings, made, name=f"{start:05d}")
    write_feedback(settings, events, name=f"{start:05d}")


def naive(table: pa.Table, column: str) -> pa.Table:
    """The same table with a time column that has lost its time zone."""
    place = table.schema.get_field_index(column)
    return table.set_column(place, column, table[column].cast(pa.timestamp("us")))


__all__ = [
    "DAY",
    "HOUR",
    "MINUTE",
    "NOW",
    "TIME",
    "decision",
    "feedback",
    "feedback_table",
    "naive",
    "unit_vectors",
    "write_decisions",
    "write_embeddings",
    "write_feedback",
    "write_history",
    "write_training_rows",
]
