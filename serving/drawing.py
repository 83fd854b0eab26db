"""From the quotas of a user's clusters to the queries of a request, each with its exact probability."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bandit.records import Query
from bandit.sampling import draw_counts, mean_shares, shares
from bandit.types import Floats, Ints, Profile


def draw(profile: Profile, rows: Ints | Sequence[int], quotas: Floats | Sequence[float], rng: np.random.Generator) -> list[Query]:
    """Draw queries: how many of each cluster by systematic sampling over the quotas, then which items in the same way.

    Args:
        profile: the user's clusters.
        rows: positions of the candidates in the profile, (n,).
        quotas: expected queries of each candidate, (n,), finite and >= 0, as `bandit.policies.plan` makes them.
        rng: the only source of randomness.

    Returns: queries, each with its exact inclusion probability.

    Raises: InvalidValueError for item weights that are not finite numbers above 0.
    """
    plain = quotas.tolist() if isinstance(quotas, np.ndarray) else quotas
    queries: list[Query] = []
    for position, count in enumerate(draw_counts(plain, rng)):
        if count:
            queries += _items(profile, int(rows[position]), plain[position], count, rng)
    return queries


def _items(profile: Profile, row: int, quota: float, count: int, rng: np.random.Generator) -> list[Query]:
    """The `count` queries of one cluster, in the order of its items."""
    items, weights = profile.queries_of(row)
    plain, floor = weights.tolist(), math.floor(quota)
    lower, upper = shares(plain, floor), shares(plain, floor + 1)
    propensities = mean_shares(lower, upper, quota - floor)
    cluster_id = profile.cluster_ids[row]
    return [
        Query(item_id=items[place], cluster_id=cluster_id, propensity=min(propensities[place], 1.0))
        for place, taken in enumerate(draw_counts(lower if count == floor else upper, rng))
        if taken
    ]
