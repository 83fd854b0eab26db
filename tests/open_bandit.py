"""The Open Bandit sample: real logs of a uniform policy and of Bernoulli Thompson sampling, with their propensities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

FILE = Path(__file__).parent / "data" / "open_bandit" / "impressions.parquet"
TRUTH = FILE.with_name("published_truth.csv")
ITEMS = {"men": 34, "women": 46}


def log(campaign: str, policy: str) -> dict[str, np.ndarray]:
    """Columns of one campaign's log under one policy."""
    table = pq.read_table(FILE, filters=[("campaign", "=", campaign), ("behavior_policy", "=", policy)])
    return {name: table[name].to_numpy() for name in ("item_id", "position", "click", "propensity_score")}


def shares(campaign: str, policy: str) -> np.ndarray:
    """How often a policy showed each item at each position, (positions + 1, items): its probabilities, counted."""
    seen = log(campaign, policy)
    counts = np.zeros((4, ITEMS[campaign]))
    np.add.at(counts, (seen["position"], seen["item_id"]), 1.0)
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
