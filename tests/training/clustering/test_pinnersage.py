"""PinnerSage against independent brute force: truths T6 (Ward) and T7 (medoid, importance)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from scipy.cluster.hierarchy import fcluster, linkage

from bandit.settings.sections import ClusteringSettings
from tests.tables_made import DAY, NOW, unit_vectors
from training.clustering.groups import offsets_of
from training.clustering.pinnersage import UserClusters, UserHistories, cluster_users, importance_terms, joined, medoids, ward_clusters

SEEDS = range(6)


def ward_by_hand(vectors: npt.NDArray[np.float32]) -> tuple[list[float], list[list[frozenset[int]]]]:
    """Ward's method from its definition: merge the two clusters whose union adds the least within-cluster variance.

    Returns: height of each merge, in order, and the partition after it. O(n^3), centroids taken anew each time.
    """
    points = vectors.astype(np.float64)
    clusters = [frozenset([index]) for index in range(len(points))]
    heights, partitions = [], []
    while len(clusters) > 1:
        best = (math.inf, 0, 0)
        for i, left in enumerate(clusters):
            for j in range(i + 1, len(clusters)):
                right = clusters[j]
                gap = points[list(left)].mean(axis=0) - points[list(right)].mean(axis=0)
                cost = math.sqrt(2.0 * len(left) * len(right) / (len(left) + len(right)) * float(gap @ gap))
                best = min(best, (cost, i, j))
        height, i, j = best
        clusters = [cluster for place, cluster in enumerate(clusters) if place not in (i, j)] + [clusters[i] | clusters[j]]
        heights.append(height)
        partitions.append(list(clusters))
    return heights, partitions


def as_partition(labels: npt.NDArray[np.int64]) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels)}


def history_of(items: list[int], ages_days: list[float], *, actions: list[int] | None = None) -> UserHistories:
    """Engagements in time order: the oldest first."""
    order = np.argsort([-age for age in ages_days], kind="stable")
    codes = actions if actions is not None else [1] * len(items)
    return UserHistories(
        engagements=np.array([len(items)]),
        items=np.array(items, np.int64)[order],
        actions=np.array(codes, np.int64)[order],
        occurred_at=np.array([NOW - round(age * DAY) for age in ages_days], np.int64)[order],
    )


def clustered(history: UserHistories, vectors: npt.NDArray[np.float32], **settings: float) -> UserClusters:
    return cluster_users(history, vectors, 3, ClusteringSettings(**settings), NOW)  # type: ignore[arg-type]


def each(flat: npt.NDArray[np.generic], counts: npt.NDArray[np.int64]) -> list[list[object]]:
    return [part.tolist() for part in np.split(flat, np.cumsum(counts)[:-1])]


def ward(vectors: npt.NDArray[np.float32], threshold: float) -> npt.NDArray[np.int64]:
    return ward_clusters(vectors.astype(np.float64), np.array([len(vectors)]), threshold)


def medoid(vectors: npt.NDArray[np.float64]) -> int:
    return int(medoids(vectors, np.arange(len(vectors)), np.array([len(vectors)]))[0])


@pytest.mark.parametrize("seed", SEEDS)
def test_t6_heights_and_clusters_are_those_of_ward_by_hand(seed: int) -> None:
    vectors = unit_vectors(18, 5, seed=seed)
    heights, partitions = ward_by_hand(vectors)
    tree = linkage(vectors.astype(np.float64), method="ward")
    np.testing.assert_allclose(tree[:, 2], heights, rtol=1e-9, atol=0.0)
    before = {frozenset([index]) for index in range(len(vectors))}
    for height, partition in zip(heights, partitions, strict=True):
        # Cut a billionth below a height and a billionth above it: the merge lies between, so our heights are these to 1e-9.
        assert as_partition(ward(vectors, height * (1.0 - 1e-9))) == before
        before = set(partition)
        assert as_partition(ward(vectors, height * (1.0 + 1e-9))) == before


@pytest.mark.parametrize("threshold", [0.05, 0.7, 1.0, 1.5, 4.0])
def test_t6_clusters_are_a_cut_of_scipys_tree(threshold: float) -> None:
    vectors = unit_vectors(300, 16, seed=7)
    cut = fcluster(linkage(vectors.astype(np.float64), method="ward"), threshold, criterion="distance")
    assert as_partition(ward(vectors, threshold)) == as_partition(cut)


def test_cluster_numbers_start_at_zero_and_have_no_gaps() -> None:
    labels = ward(unit_vectors(40, 4, seed=1), 0.8)
    assert labels.dtype == np.int64
    assert sorted(set(labels.tolist())) == list(range(labels.max() + 1))
    assert labels.max() > 1


def test_equal_vectors_are_one_cluster_at_any_threshold() -> None:
    vectors = np.repeat(unit_vectors(2, 8), 5, axis=0)
    assert as_partition(ward(vectors, 1e-6)) == {frozenset(range(5)), frozenset(range(5, 10))}


@pytest.mark.parametrize("seed", SEEDS)
def test_t7_medoid_has_the_least_sum_of_squared_distances(seed: int) -> None:
    for count in (1, 2, 3, 10, 57):
        vectors = unit_vectors(count, 6, seed=100 * seed + count).astype(np.float64)
        sums = [sum(float(((left - right) ** 2).sum()) for right in vectors) for left in vectors]
        if count == 2:
            assert medoid(vectors) in (0, 1)
        else:
            assert medoid(vectors) == int(np.argmin(sums))


def test_medoid_is_the_first_of_equals() -> None:
    assert medoid(np.array([[2.0, 0.0], [0.0, 1.0], [0.0, -1.0], [0.0, 1.0], [0.0, -1.0], [-2.0, 0.0]])) == 1


def test_t7_importance_is_the_sum_of_exp_of_a_hundredth_of_the_age() -> None:
    ages = [0.0, 1.5, 30.0, 365.0]
    result = clustered(history_of([0, 0, 1, 1], ages), np.array([[1.0, 0.0], [0.99, 0.1]], np.float32))
    assert len(result.importance) == 1
    assert result.importance[0] == pytest.approx(sum(math.exp(-0.01 * age) for age in ages), rel=1e-12)
    assert ClusteringSettings().importance_decay_per_day == 0.01


def test_importance_of_the_future_is_that_of_now() -> None:
    assert importance_terms(np.array([NOW + DAY, NOW]), NOW, 0.01).tolist() == [1.0, 1.0]


def test_no_decay_counts_the_actions() -> None:
    result = clustered(history_of([0, 0, 0], [1, 500, 900]), unit_vectors(1, 4), importance_decay_per_day=0.0)
    assert result.importance.tolist() == [3.0]


def test_the_hundred_most_important_clusters_are_kept_most_important_first() -> None:
    assert ClusteringSettings().max_clusters == 100
    vectors = np.eye(130, dtype=np.float32)
    items = [item for item in range(130) for _ in range(1 + item * 7 % 131)]  # another number of actions for each item
    result = clustered(history_of(items, [1.0] * len(items)), vectors)
    expected = sorted(range(130), key=lambda item: -(1 + item * 7 % 131))[:100]
    assert (result.clusters.tolist(), result.served.tolist()) == ([130], [100])
    assert result.medoids[:100].tolist() == expected
    assert (np.diff(result.importance) < 0.0).all()


def test_query_items_of_a_cluster_are_its_heaviest_first() -> None:
    near = np.array([[1.0, 0.001 * place] for place in range(6)], np.float32)
    items, ages = [0, 1, 1, 2, 2, 2, 3, 4, 5], [10, 10, 10, 10, 10, 10, 1, 20, 0.5]
    result = clustered(history_of(items, ages), near, items_per_cluster=4)
    weights = {item: sum(math.exp(-0.01 * age) for i, age in zip(items, ages, strict=True) if i == item) for item in range(6)}
    heaviest = sorted(weights, key=lambda item: -weights[item])[:4]
    assert heaviest == [2, 1, 5, 3]
    assert result.query_counts.tolist() == [4]
    assert result.query_items.tolist() == heaviest
    assert result.query_weights.tolist() == pytest.approx([weights[item] for item in heaviest], rel=1e-12)


def test_counts_actions_and_last_action_are_those_of_each_cluster() -> None:
    vectors = np.array([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0]], np.float32)
    result = clustered(history_of([0, 1, 2, 0], [9, 3, 5, 7], actions=[1, 2, 1, 1]), vectors)
    assert result.medoids.tolist() == [0, 2]
    assert result.item_counts.tolist() == [2, 1]
    assert result.action_counts.tolist() == [[0, 2, 1], [0, 1, 0]]
    assert result.last_action_at.tolist() == [NOW - 3 * DAY, NOW - 5 * DAY]


def test_only_the_most_recent_items_are_used() -> None:
    result = clustered(history_of([0, 1, 2, 0, 3], [50, 40, 30, 20, 10]), np.eye(4, dtype=np.float32), max_items=2)
    assert sorted(result.medoids.tolist()) == [0, 3]
    kept = dict(zip(result.medoids.tolist(), result.importance.tolist(), strict=True))
    assert kept == pytest.approx({0: math.exp(-0.5) + math.exp(-0.2), 3: math.exp(-0.1)}, rel=1e-12)


def test_a_user_with_one_item_has_one_cluster() -> None:
    result = clustered(history_of([5], [2.0]), unit_vectors(9, 4))
    assert result.medoids.tolist() == [5]
    assert result.item_counts.tolist() == [1]
    assert each(result.query_items, result.query_counts) == [[5]]
    assert result.importance.tolist() == pytest.approx([math.exp(-0.02)], rel=1e-12)


def test_medoids_of_many_clusters_at_once_are_those_of_each() -> None:
    rng = np.random.default_rng(5)
    for _ in range(50):
        sizes = rng.integers(1, 9, int(rng.integers(1, 12)))
        vectors = np.round(rng.normal(size=(int(sizes.sum()), 3)), 1)  # rounded: pairs tie
        members = rng.permutation(len(vectors))
        parts = np.split(members, np.cumsum(sizes)[:-1])
        assert medoids(vectors, members, sizes).tolist() == [part[medoid(vectors[part])] for part in parts]


@pytest.mark.parametrize("seed", SEEDS)
def test_clusters_of_many_users_at_once_are_numbered_as_scipy_numbers_those_of_each(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 12, int(rng.integers(1, 20)))
    vectors = np.round(rng.normal(size=(int(sizes.sum()), 2)), 1)
    for threshold in (0.05, 0.7, 2.0, 100.0):
        parts = np.split(vectors, np.cumsum(sizes)[:-1])
        numbers = [fcluster(linkage(part, "ward"), threshold, "distance") - 1 if len(part) > 1 else [0] for part in parts]
        assert each(ward_clusters(vectors, sizes, threshold), sizes) == [list(labels) for labels in numbers]


@pytest.mark.parametrize("seed", SEEDS)
def test_no_user_depends_on_the_others(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 40, 15)
    m = int(sizes.sum())
    times = [np.sort(NOW - rng.integers(0, 50, size) * DAY) for size in sizes]
    histories = UserHistories(
        engagements=sizes, items=rng.integers(0, 30, m), actions=rng.integers(0, 3, m), occurred_at=np.concatenate(times)
    )
    vectors = unit_vectors(30, 3, seed=seed)
    limits = {"max_clusters": 3, "max_items": 12, "items_per_cluster": 2, "distance_threshold": 0.6}
    alone = [clustered(one, vectors, **limits) for one in one_by_one(histories)]
    together, expected = clustered(histories, vectors, **limits), joined(alone)
    for field in fields(UserClusters):
        left, right = getattr(together, field.name), getattr(expected, field.name)
        assert left.dtype == right.dtype, field.name
        np.testing.assert_array_equal(left, right, field.name)
    assert (together.clusters > together.served).any()
    assert together.query_counts.sum() < together.item_counts.sum() < m


def one_by_one(histories: UserHistories) -> Sequence[UserHistories]:
    offsets = offsets_of(histories.engagements)
    return [
        UserHistories(
            engagements=np.array([end - start]),
            items=histories.items[start:end],
            actions=histories.actions[start:end],
            occurred_at=histories.occurred_at[start:end],
        )
        for start, end in pairwise(offsets)
    ]


def test_nobody_has_no_clusters() -> None:
    nothing = np.zeros(0, np.int64)
    result = clustered(UserHistories(engagements=nothing, items=nothing, actions=nothing, occurred_at=nothing), unit_vectors(3, 2))
    assert (len(result.clusters), result.action_counts.shape, len(result.query_items)) == (0, (0, 3), 0)
