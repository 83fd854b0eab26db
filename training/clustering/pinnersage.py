"""PinnerSage: users' engaged items to clusters, each with a medoid, an importance and its best query items.

Many users at a time, as flat arrays: only Ward's method itself runs user by user.

Source: Pal et al., PinnerSage, KDD 2020: Ward's method cut at a distance threshold, medoids, recency-weighted importance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage

from bandit.settings.sections import ClusteringSettings
from bandit.types import MICROSECONDS_PER_DAY, Floats, Floats32, Ints
from training.clustering.groups import places_in, starts_of

_TIE = 1e-12  # squared distance: what is equally near to a mean, up to rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class UserHistories:
    """Engagements of users, one user after the other, each user's in time order.

    `engagements` says how many each user has, at least one, (users,). Rows of the embedding matrix, action codes and times (microseconds)
    are (sum of engagements,).
    """

    engagements: Ints
    items: Ints
    actions: Ints
    occurred_at: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class UserClusters:
    """Clusters of users, one user after the other, each user's most important first. Items are rows of the embedding matrix.

    `clusters` says how many each user has, and `served` how many of them, the first, serve queries: those beyond `max_clusters` do not, but
    keep what their items earned. Both are (users,). Medoids, counts, importance and times are (clusters, ...). `item_counts` and
    `query_counts` say how many of `members` (by row), and of `query_items` (heaviest first) and their weights, each cluster has.
    """

    clusters: Ints
    served: Ints
    medoids: Ints
    item_counts: Ints
    action_counts: Ints
    importance: Floats
    last_action_at: Ints
    members: Ints
    query_counts: Ints
    query_items: Ints
    query_weights: Floats


def joined(parts: Sequence[UserClusters]) -> UserClusters:
    """All users of the parts, at least one, in their order."""
    return UserClusters(**{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(UserClusters)})


def ward_clusters(vectors: Floats, sizes: Ints, threshold: float) -> Ints:
    """Cluster number of each vector: Ward's method for each user, cut where the merge height passes `threshold`.

    Args:
        vectors: of one user after the other, (m, d).
        sizes: how many of them each user has, at least one.
        threshold: Ward height.

    Returns: from 0 for each user, shape (m,).
    """
    starts = starts_of(sizes)
    trees = [linkage(vectors[start : start + size], method="ward") for start, size in zip(starts, sizes, strict=True) if size > 1]
    label = fcluster(_forest(trees, sizes), threshold, criterion="distance") if len(vectors) > 1 else np.zeros(len(vectors))
    return np.asarray(label - np.repeat(np.minimum.reduceat(label, starts), sizes), np.int64)


def _forest(trees: Sequence[Floats], sizes: Ints) -> Floats:
    """The users' trees as one, joined at an infinite height, so that `fcluster` checks its input once and not for each user.

    It numbers clusters as it walks through a tree: those of one user follow each other, in the order that they have without the others.
    """
    users, leaves = len(sizes), int(sizes.sum())
    merges = sizes - 1
    joins = np.full((users - 1, 4), np.inf)
    rows = np.concatenate([*trees, joins])
    nodes, joins = rows[: leaves - users, :2], rows[leaves - users :]
    leaf, merge = starts_of(sizes), leaves + starts_of(merges)  # the first node of either kind; in a user's own tree 0 and its size
    nodes += np.where(
        nodes < np.repeat(sizes, merges)[:, None], np.repeat(leaf, merges)[:, None], np.repeat(merge - sizes, merges)[:, None]
    )
    roots = np.where(merges > 0, merge + merges - 1, leaf)
    joins[:, 0] = np.append(roots[0], 2 * leaves - users + np.arange(users))[: users - 1]  # the first user, then each time the last join
    joins[:, 1] = roots[1:]
    joins[:, 3] = np.cumsum(sizes)[1:]
    return rows


def medoids(vectors: Floats, members: Ints, sizes: Ints) -> Ints:
    """The medoid of each cluster: the member with the least sum of squared distances to the others; the first of equals.

    sum_j |x_i - x_j|^2 = m |x_i - mean|^2 + a term that is the same for all i, so the member nearest to the mean is the medoid.

    Args:
        vectors: (m, d).
        members: places in `vectors`, cluster after cluster.
        sizes: how many of them each cluster has, at least one.

    Returns: places in `vectors`, one of each cluster.
    """
    result = members[starts_of(sizes)]  # of two members none is nearer to their mean
    many = sizes > 2
    inside, sizes = members[np.repeat(many, sizes)], sizes[many]
    starts = starts_of(sizes)
    apart = vectors.take(inside, axis=0)
    apart -= np.repeat(np.add.reduceat(apart, starts, axis=0) / sizes[:, None], sizes, axis=0)
    distances = np.square(apart, out=apart).sum(axis=1)
    near = np.flatnonzero(distances <= np.repeat(np.minimum.reduceat(distances, starts), sizes) + _TIE)
    result[many] = inside[near[np.searchsorted(near, starts)]]
    return result


def importance_terms(occurred_at: Ints, as_of: int, decay_per_day: float) -> Floats:
    """exp(-decay * age in days) of each action; their sum is a cluster's importance. Shape (m,)."""
    return np.asarray(np.exp(-decay_per_day * np.maximum(as_of - occurred_at, 0) / MICROSECONDS_PER_DAY), np.float64)


def cluster_users(histories: UserHistories, vectors: Floats32, actions: int, settings: ClusteringSettings, as_of: int) -> UserClusters:
    """Cluster each user's items. No result depends on which users come together.

    Args:
        histories: at least one user; only the most recent `max_items` different items of each are used.
        vectors: the whole embedding matrix.
        actions: number of action types.
        settings: threshold, limits and decay.
        as_of: time at which ages are taken, UTC microseconds.
    """
    users = len(histories.engagements)
    user, items, place = _engaged_items(histories, settings.max_items)
    used = place >= 0
    place, action, occurred_at = place[used], histories.actions[used], histories.occurred_at[used]
    points = vectors.take(items, axis=0).astype(np.float64)
    label = ward_clusters(points, np.bincount(user, minlength=users), settings.distance_threshold)
    clusters = np.zeros(users, np.int64)
    np.maximum.at(clusters, user, label + 1)
    n = int(clusters.sum())
    owner = starts_of(clusters)[user] + label  # numbers over all users
    terms = importance_terms(occurred_at, as_of, settings.importance_decay_per_day)
    importance = np.bincount(owner[place], terms, n).astype(np.float64)
    weight = np.bincount(place, terms, len(items)).astype(np.float64)
    counts = np.bincount(owner[place] * actions + action, minlength=n * actions).reshape(n, actions)
    latest = np.zeros(n, np.int64)
    np.maximum.at(latest, owner[place], occurred_at)
    ranked = np.lexsort((-importance, np.repeat(np.arange(users), clusters)))
    rank = np.empty(n, np.int64)
    rank[ranked] = np.arange(n)
    sizes = np.bincount(rank[owner], minlength=n)
    members = np.argsort(rank[owner], kind="stable")
    heaviest = np.lexsort((-weight, rank[owner]))[places_in(sizes) < settings.items_per_cluster]
    return UserClusters(
        clusters=clusters,
        served=np.minimum(clusters, settings.max_clusters),
        medoids=items[medoids(points, members, sizes)],
        item_counts=sizes,
        action_counts=counts[ranked],
        importance=importance[ranked],
        last_action_at=latest[ranked],
        members=items[members],
        query_counts=np.minimum(sizes, settings.items_per_cluster),
        query_items=items[heaviest],
        query_weights=weight[heaviest],
    )


def _engaged_items(histories: UserHistories, limit: int) -> tuple[Ints, Ints, Ints]:
    """Each user's different items by row, at most the `limit` most recent ones.

    Returns: user and row of each, and for each engagement the place of its item among them, -1 when it is left out.
    """
    users = len(histories.engagements)
    user = np.repeat(np.arange(users), histories.engagements)
    order = np.lexsort((histories.items, user))
    last = np.any(np.diff([user[order], histories.items[order]], append=-1) != 0, axis=0)
    seen = order[last]  # the last engagement with each item, since the order is a stable one
    place = np.empty(len(order), np.int64)
    place[order] = np.cumsum(last) - last
    recent_first = np.lexsort((-seen, user[seen]))
    kept = np.zeros(len(seen), bool)
    kept[recent_first] = places_in(np.bincount(user[seen], minlength=users)) < limit
    seen, place = seen[kept], np.where(kept, np.cumsum(kept) - 1, -1)[place]
    return user[seen], histories.items[seen], place
