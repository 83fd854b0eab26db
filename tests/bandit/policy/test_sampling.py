"""The draw: exact expectations by enumeration (T9), and the frequencies of many draws."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given

from bandit.policy.quotas import proportional
from bandit.policy.sampling import inclusion_probabilities, mixed_inclusion
from tests.strategies import law, systematic, weighted


def inclusion(weights: np.ndarray, count: int) -> np.ndarray:
    return np.array(inclusion_probabilities(weights.tolist(), count))


def item_propensities(weights: np.ndarray, quota: float) -> np.ndarray:
    """As `draw_items` computes them."""
    lower, upper = (inclusion_probabilities(weights.tolist(), int(quota) + more) for more in (0, 1))
    return np.array(mixed_inclusion(lower, upper, quota - int(quota)))


class Script:
    """Randomness that is written down beforehand: the numbers that make one order, and the one that is laid over it."""

    def __init__(self, order: tuple[int, ...], uniform: float) -> None:
        self.numbers = np.zeros(len(order))
        shuffled = list(range(len(order)))
        for last in range(len(order) - 1, 0, -1):
            other = shuffled.index(order[last])
            self.numbers[last] = (other + 0.5) / (last + 1)
            shuffled[last], shuffled[other] = shuffled[other], shuffled[last]
        self.numbers[0] = uniform

    def random(self, n: int) -> np.ndarray:
        assert n == len(self.numbers)
        return self.numbers


def exact(quotas: np.ndarray) -> list[tuple[float, np.ndarray]]:
    """The whole distribution of `systematic`: every order, and every interval of u in which the draw does not change."""
    outcomes = []
    orders = list(itertools.permutations(range(len(quotas))))
    for order in orders:
        edges = np.unique(np.concatenate(([0.0, 1.0], np.cumsum(quotas[list(order)]) % 1.0)))
        for left, right in itertools.pairwise(edges):
            outcomes.append(((right - left) / len(orders), systematic(quotas, Script(order, (left + right) / 2))))
    return outcomes


QUOTAS = [
    [1.0],
    [0.5, 0.5],
    [0.3, 0.3, 0.4],
    [1.7, 0.2, 0.1],
    [2.0, 1.0, 0.0],
    [0.9, 0.9, 0.1, 0.1],
    [3.25, 0.25, 1.25, 0.25],
    [0.6, 0.6, 0.6, 0.6, 0.6],
    [0.01, 2.49, 0.5, 1.0, 3.0],
]


@pytest.mark.parametrize("quotas", QUOTAS)
def test_t9_by_enumeration_expected_counts_equal_the_quotas(quotas):
    """T9: inclusion frequency = lambda, counts within floor and ceil, their sum fixed."""
    quotas = np.array(quotas)
    outcomes = exact(quotas)
    assert sum(probability for probability, _ in outcomes) == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(sum(probability * counts for probability, counts in outcomes), quotas, atol=1e-12)
    for probability, counts in outcomes:
        if probability > 1e-12:
            assert (counts >= np.floor(quotas)).all()
            assert (counts <= np.ceil(quotas)).all()
            assert counts.sum() == round(quotas.sum())


def test_t9_by_enumeration_on_random_quotas_up_to_five_clusters():
    rng = np.random.default_rng(0)
    for _ in range(40):
        n = int(rng.integers(1, 6))
        caps = rng.integers(1, 4, n).astype(float)
        quotas = proportional(rng.uniform(0.1, 5.0, n), int(rng.integers(1, 6)), caps)
        np.testing.assert_allclose(sum(probability * counts for probability, counts in exact(quotas)), quotas, atol=1e-9)


def test_random_order_lets_clusters_that_a_fixed_order_would_part_meet():
    meetings = dict.fromkeys(itertools.combinations(range(4), 2), 0.0)
    for probability, counts in exact(np.full(4, 0.5)):
        for i, j in meetings:
            meetings[i, j] += probability * counts[i] * counts[j]
    np.testing.assert_allclose(list(meetings.values()), 1 / 6, atol=1e-12)


@law
@given(weighted())
def test_counts_are_floor_or_ceil_of_their_quotas_and_sum_to_k(case):
    weights, k, _ = case
    caps = np.full(len(weights), 3.0)
    quotas = proportional(weights, k, caps)
    for seed in range(5):
        counts = systematic(quotas, np.random.default_rng(seed))
        assert counts.sum() == min(k, 3 * len(weights))
        assert (counts >= np.floor(quotas)).all()
        assert (counts <= np.ceil(quotas)).all()


def z_scores(hits: np.ndarray, probability: np.ndarray, draws: int) -> np.ndarray:
    return (hits - draws * probability) / np.sqrt(np.maximum(draws * probability * (1.0 - probability), 1e-9))


def test_drawn_frequencies_match_the_quotas():
    quotas, draws, rng = proportional([1, 2, 3, 4, 5, 30, 0.1], 6, np.full(7, 3.0)), 25_000, np.random.default_rng(1)
    totals = sum(systematic(quotas, rng) for _ in range(draws))
    whole = np.floor(quotas)
    assert np.abs(z_scores(totals - draws * whole, quotas - whole, draws)).max() < 4.0


def test_a_sum_that_is_not_whole_draws_its_floor_or_ceil_and_keeps_the_mean():
    quotas, rng = np.array([0.7, 0.55, 1.0]), np.random.default_rng(2)
    draws = np.array([systematic(quotas, rng) for _ in range(10_000)])
    assert set(draws.sum(axis=1)) == {2, 3}
    np.testing.assert_allclose(draws.mean(axis=0), quotas, atol=0.02)


def test_same_seed_same_draw_and_another_seed_another():
    quotas = proportional(np.arange(1.0, 31.0), 10, np.full(30, 2.0))
    draw = lambda seed: systematic(quotas, np.random.default_rng(seed)).tolist()  # noqa: E731
    assert draw(5) == draw(5)
    assert len({tuple(draw(seed)) for seed in range(10)}) > 5


def test_nothing_is_drawn_from_nothing():
    assert systematic(np.zeros(0), np.random.default_rng(0)).tolist() == []
    assert systematic(np.zeros(3), np.random.default_rng(0)).tolist() == [0, 0, 0]


def test_inclusion_is_proportional_to_weight_capped_at_one_and_sums_to_the_count():
    weights = np.array([5.0, 3.0, 1.0, 1.0])
    np.testing.assert_allclose(inclusion(weights, 1), [0.5, 0.3, 0.1, 0.1])
    np.testing.assert_allclose(inclusion(weights, 2), [1.0, 0.6, 0.2, 0.2])
    np.testing.assert_allclose(inclusion(weights, 0), 0.0)
    np.testing.assert_allclose(inclusion(weights, 9), 1.0)


@pytest.mark.parametrize("quota", [0.25, 1.0, 1.5, 2.75, 4.0])
def test_item_propensities_equal_the_enumeration_of_both_draws(quota):
    """First the cluster's count (floor or ceil, with mean quota), then that many of its items: summed over every way."""
    weights = np.array([5.0, 3.0, 1.5, 0.5])
    expected = np.zeros(4)
    rest = quota - np.floor(quota)
    for probability, count in ((1.0 - rest, int(np.floor(quota))), (rest, int(np.floor(quota)) + 1)):
        if probability and count:
            expected += probability * sum(share * (taken > 0) for share, taken in exact(inclusion(weights, count)))
    propensities = item_propensities(weights, quota)
    np.testing.assert_allclose(propensities, expected, atol=1e-12)
    assert propensities.sum() == pytest.approx(quota)


def test_drawn_items_match_their_propensities_in_frequency():
    weights, quotas, draws, rng = np.array([4.0, 2.0, 1.0, 1.0]), np.array([1.4, 0.6]), 15_000, np.random.default_rng(3)
    hits = np.zeros(4)
    for _ in range(draws):
        count = int(systematic(quotas, rng)[0])
        hits += systematic(inclusion(weights, count), rng)
    assert np.abs(z_scores(hits, item_propensities(weights, 1.4), draws)).max() < 4.0


def test_no_item_is_drawn_twice_and_as_many_come_as_were_counted():
    rng = np.random.default_rng(4)
    for count in range(1, 7):
        for _ in range(50):
            taken = systematic(inclusion(rng.uniform(0.1, 9.0, 6), count), rng)
            assert taken.max() == 1
            assert taken.sum() == count
