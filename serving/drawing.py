"""From the quotas of a user's clusters to the queries of a request, each with its exact probability."""

from __future__ import annotations

from collections.abc import Sequence

from bandit.policy.sampling import Randomness, draw_items
from bandit.records import Query
from bandit.types import Profile


def draw(profile: Profile, rows: Sequence[int], quotas: list[float], rng: Randomness) -> list[Query]:
    """Draw queries: how many of each cluster by systematic sampling over the quotas, then which items in the same way.

    Args:
        profile: the user's clusters.
        rows: positions of the candidates in the profile, (n,).
        quotas: expected queries of each candidate, (n,), finite and >= 0, as `bandit.policy.scores.plan` makes them.
        rng: the only source of randomness.

    Returns: queries, each with its exact inclusion probability, in the order of the clusters and of their items.

    Raises: InvalidValueError for item weights that are not finite numbers above 0.
    """
    cluster_ids, items = profile.cluster_ids, profile.query_items
    return [
        Query(item_id=items[item], cluster_id=cluster_ids[row], propensity=propensity)
        for row, item, propensity in draw_items(rows, quotas, profile.query_offsets.tolist(), profile.query_weights, rng)
    ]
