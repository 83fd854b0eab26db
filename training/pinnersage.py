"""PinnerSage: one user's engaged items to clusters, each with a medoid, an importance and its best query items.

Source: Pal et al., PinnerSage, KDD 2020: Ward's method cut at a distance threshold, medoids, recency-weighted importance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage

from bandit.settings import ClusteringSettings
from bandit.types import MICROSECONDS_PER_DAY, Floats, Floats32, Ints

_TIE = 1e-12  # squared distance: the two items of a pair are equally near to their middle, up to rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class UserHistory:
    """One user's engagements in time order: rows of the embedding matrix, action codes, times (microseconds); all (m,)."""

    user_id: str
    items: Ints
    actions: Ints
    occurred_at: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class UserClusters:
    """One user's clusters, most important first; n of them. Items are rows of the embedding matrix.

    `left_out` holds the medoids of the clusters beyond `max_clusters`. They serve no queries, but keep what their items earned: `members`
    has theirs too, behind those of the n.
    """

    user_id: str
    medoids: Ints
    left_out: Ints
    members: list[Ints]
    item_counts: Ints
    action_counts: Ints
    importance: Floats
    last_action_at: Ints
    query_items: list[Ints]
    query_weights: list[Floats]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle few long arrays: worker processes hand back some hundred short ones per user otherwise, one by one."""
        long = [(np.concatenate(parts), [len(part) for part in parts]) for parts in (self.members, self.query_items, self.query_weights)]
        plain = self.medoids, self.left_out, self.item_counts, self.action_counts, self.importance, self.last_action_at
        return _unpickled, (self.user_id, plain, long)


def _unpickled(user_id: str, plain: tuple[Any, ...], long: list[tuple[Any, list[int]]]) -> UserClusters:
    medoids, left_out, item_counts, action_counts, importance, last_action_at = plain
    members, query_items, query_weights = (np.split(flat, np.cumsum(sizes)[:-1]) for flat, sizes in long)
    return UserClusters(
        user_id=user_id,
        medoids=medoids,
        left_out=left_out,
        members=members,
        item_counts=item_counts,
        action_counts=action_counts,
        importance=importance,
        last_action_at=last_action_at,
        query_items=query_items,
        query_weights=query_weights,
    )


def ward_clusters(vectors: Floats32, threshold: float) -> Ints:
    """Cluster number (from 0) of each vector: Ward's method, cut where the merge height passes `threshold`. Shape (m,)."""
    if len(vectors) == 1:
        return np.zeros(1, np.int64)
    return np.asarray(fcluster(linkage(vectors.astype(np.float64), method="ward"), threshold, criterion="distance") - 1, np.int64)


def medoid(vectors: Floats) -> int:
    """Index of the member with the least sum of squared distances to the others; the first of equals.

    sum_j |x_i - x_j|^2 = m |x_i - mean|^2 + a term that is the same for all i, so the member nearest to the mean is the medoid.
    """
    distances = ((vectors - vectors.mean(axis=0)) ** 2).sum(axis=1)
    return int(np.argmax(distances <= distances.min() + _TIE))


def first_medoids(vectors: Floats, starts: Ints) -> Ints:
    """`medoid` of many clusters at once: those of cluster i are vectors[starts[i]:starts[i + 1]]. Returns places in `vectors`."""
    sizes = np.diff(starts, append=len(vectors))
    cluster = np.repeat(np.arange(len(starts)), sizes)
    means = np.add.reduceat(vectors, starts, axis=0) / sizes[:, None]
    distances = ((vectors - means[cluster]) ** 2).sum(axis=1)
    near = np.flatnonzero(distances <= np.minimum.reduceat(distances, starts)[cluster] + _TIE)
    return near[np.searchsorted(near, starts)]


def importance_terms(occurred_at: Ints, as_of: int, decay_per_day: float) -> Floats:
    """exp(-decay * age in days) of each action; their sum is a cluster's importance. Shape (m,)."""
    return np.asarray(np.exp(-decay_per_day * np.maximum(as_of - occurred_at, 0) / MICROSECONDS_PER_DAY), np.float64)


def cluster_user(history: UserHistory, vectors: Floats32, actions: int, settings: ClusteringSettings, as_of: int) -> UserClusters:
    """Cluster one user's items. A user has at most `max_clusters` clusters: the most important are kept.

    Args:
        history: at least one engagement; only the most recent `max_items` different items are used.
        vectors: the whole embedding matrix.
        actions: number of action types.
        settings: threshold, limits and decay.
        as_of: time at which ages are taken, UTC microseconds.
    """
    items, last = np.unique(history.items[::-1], return_index=True)  # `last`: how far from the end each item was last seen
    items = np.sort(items[np.argsort(last, kind="stable")][: settings.max_items])
    kept = np.isin(history.items, items)
    place = np.searchsorted(items, history.items[kept])
    terms = importance_terms(history.occurred_at[kept], as_of, settings.importance_decay_per_day)
    label = ward_clusters(vectors[items], settings.distance_threshold)
    n = int(label.max()) + 1
    owner = label[place]
    importance = np.bincount(owner, terms, n).astype(np.float64)
    weight = np.bincount(place, terms, len(items)).astype(np.float64)
    counts = np.zeros((n, actions), np.int64)
    np.add.at(counts, (owner, history.actions[kept]), 1)
    latest = np.zeros(n, np.int64)
    np.maximum.at(latest, owner, history.occurred_at[kept])
    ranked = np.argsort(-importance, kind="stable")
    order = ranked[: settings.max_clusters]
    by_cluster = np.argsort(label, kind="stable")
    starts = np.searchsorted(label[by_cluster], np.arange(n))
    medoids = items[by_cluster[first_medoids(vectors[items[by_cluster]].astype(np.float64), starts)]][ranked]
    groups = _in_order(np.split(by_cluster, starts[1:]), ranked)
    by_weight = np.lexsort((-weight, label))
    best = [group[: settings.items_per_cluster] for group in _in_order(np.split(by_weight, starts[1:]), order)]
    return UserClusters(
        user_id=history.user_id,
        medoids=medoids[: len(order)],
        left_out=medoids[len(order) :],
        members=[items[group] for group in groups],
        item_counts=np.bincount(label, minlength=n)[order].astype(np.int64),
        action_counts=counts[order],
        importance=importance[order],
        last_action_at=latest[order],
        query_items=[items[places] for places in best],
        query_weights=[weight[places] for places in best],
    )


def _in_order(groups: list[Ints], order: Ints) -> list[Ints]:
    return [groups[place] for place in order]
