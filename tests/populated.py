"""A deployment with users who have clusters, feedback and features in Redis."""

from __future__ import annotations

import numpy as np

from bandit.settings import Settings
from tests.tables_made import DAY, HOUR, NOW, feedback, unit_vectors, write_embeddings, write_history
from training.cluster import cluster
from training.feature_store import materialize
from training.feedback import append_feedback
from training.fold import fold

__all__ = ["NOW", "populate"]


def populate(settings: Settings, *, users: int, feedback_of: int) -> list[str]:
    """Users `u0`, `u1`, … with 12 engaged items each; the first `feedback_of` have feedback on their first cluster."""
    rng = np.random.default_rng(3)
    items = [f"item-{number:02}" for number in range(40)]
    names = [f"u{number}" for number in range(users)]
    folder = settings.data_path
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        (name, items[item], "repin", NOW - int(rng.integers(1, 30)) * DAY)
        for name in names
        for item in rng.choice(len(items), 12, replace=False)
    ]
    write_history(folder / "history.parquet", rows)
    write_embeddings(folder / "items.parquet", items, unit_vectors(40, 4, seed=5))
    cluster(settings, history=folder / "history.parquet", embeddings=folder / "items.parquet", as_of=NOW)
    events = []
    for name in names[:feedback_of]:
        first = next(row[1] for row in rows if row[0] == name)
        for number in range(6):
            fields = {"user_id": name, "cluster_id": first, "item_id": f"x{number}"}
            events.append(feedback(f"{name}/{number}", at=NOW - HOUR, **fields))
            if number % 2:
                events.append(feedback(f"{name}/{number}/repin", at=NOW - HOUR, action="repin", **fields))
    if events:
        append_feedback(settings, events, "populated")
        fold(settings, as_of=NOW, now=NOW)
    materialize(settings, until=NOW)
    return names
