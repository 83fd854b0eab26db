"""Laws of the quotas: their sum, range and order, what they are optimal for, and what exploration costs at most."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq

from bandit.errors import InvalidValueError
from bandit.policy.quotas import budget_by_evidence, budgeted, proportional
from bandit.types import Rate
from tests.strategies import greedy_value, law, scored, weighted

CASES = 10_000


def random_cases(count: int, seed: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray, float, np.ndarray]]:
    """Scores, budgets, k and caps: n from 1 to 100, budgets from 1e-12 to 1e3, scores of scale 1e-6 to 1e6, a half of them with ties."""
    rng = np.random.default_rng(seed)
    for case in range(count):
        n = int(rng.integers(1, 101))
        scores = rng.normal(size=n)
        if case % 4 == 1:
            scores = np.round(scores)  # ties
        if case % 4 == 3:
            scores[:] = scores[0]  # nothing but ties
        budgets = 10.0 ** rng.uniform(-12, 3, n if case % 2 else 1) * np.ones(n)
        caps = rng.integers(1, 11, n).astype(float) if rng.random() < 0.5 else rng.uniform(0.01, 10.0, n)
        k = float(rng.integers(1, 61)) if rng.random() < 0.7 else caps.sum() * rng.uniform(1e-3, 1.0)
        yield scores * 10.0 ** rng.uniform(-6, 6), budgets, k, caps


def check_distribution(quotas: np.ndarray, k: float, caps: np.ndarray) -> None:
    expected = min(k, caps.sum())
    assert quotas.sum() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert (quotas > 0.0).all()
    assert (quotas <= caps).all()


@law
@given(weighted())
def test_proportional_sums_to_k_or_to_all_caps_and_stays_within_them(case):
    weights, k, caps = case
    check_distribution(proportional(weights, k, caps), k, caps)


@law
@given(weighted())
def test_proportional_shares_are_proportional_below_the_caps_and_no_capped_cluster_would_deserve_less(case):
    weights, k, caps = case
    quotas = proportional(weights, k, caps)
    free = quotas < caps
    if free.any():
        shares = quotas[free] / weights[free]
        np.testing.assert_allclose(shares, shares[0], rtol=1e-9)
        assert (caps[~free] <= shares[0] * weights[~free] * (1.0 + 1e-9)).all()


@law
@given(weighted())
def test_proportional_keeps_the_order_of_weights_under_equal_caps_and_forgets_their_unit(case):
    weights, k, caps = case
    equal = np.full(len(weights), caps[0])
    quotas = proportional(weights, k, equal)
    assert (np.diff(quotas[np.argsort(weights)]) >= -1e-12).all()
    np.testing.assert_allclose(proportional(weights * 1e9, k, equal), quotas, rtol=1e-9)


def test_proportional_agrees_with_a_root_finder():
    rng = np.random.default_rng(1)
    for _ in range(500):
        n = int(rng.integers(2, 40))
        weights, caps = 10.0 ** rng.uniform(-2, 2, n), rng.uniform(0.1, 10.0, n)
        k = caps.sum() * rng.uniform(0.01, 0.99)
        excess = lambda log_alpha, w=weights, c=caps, k=k: np.minimum(c, np.exp(log_alpha) * w).sum() - k  # noqa: E731
        alpha = np.exp(brentq(excess, np.log(1e-6), np.log(1e6), xtol=1e-14))
        np.testing.assert_allclose(proportional(weights, k, caps), np.minimum(caps, alpha * weights), rtol=1e-9)


@pytest.mark.parametrize("k", [1, 12, 17, 19.5])
@pytest.mark.parametrize("weights", [[np.finfo(float).tiny] * 2, [1.0, np.finfo(float).tiny], [1e300, 1e-300], [5e-324, 1.0]])
def test_proportional_bears_weights_at_the_edge_of_the_numbers(weights, k):
    caps = np.array([10.0, 10.0])
    quotas = proportional(weights, k, caps)
    check_distribution(quotas, k, caps)
    if weights[0] == weights[1]:
        np.testing.assert_allclose(quotas, k / 2)


def test_proportional_examples():
    np.testing.assert_allclose(proportional([1, 2, 3], 3, [9, 9, 9]), [0.5, 1.0, 1.5])
    np.testing.assert_allclose(proportional([1, 1, 8], 4, [9, 9, 2]), [1.0, 1.0, 2.0])  # what the cap leaves goes to the others
    np.testing.assert_allclose(proportional([1, 1], 9, [2, 3]), [2.0, 3.0])  # fewer caps than queries


@law
@given(scored())
def test_budgeted_sums_to_k_or_to_all_caps_and_stays_within_them(case):
    scores, budgets, k, caps = case
    check_distribution(budgeted(scores, budgets, k, caps), k, caps)


@law
@given(scored())
def test_budgeted_keeps_the_order_of_scores_under_equal_budgets_and_caps(case):
    scores, budgets, k, caps = case
    n = len(scores)
    quotas = budgeted(scores, np.full(n, budgets[0]), k, np.full(n, caps[0]))
    assert (np.diff(quotas[np.argsort(scores)]) >= -1e-9 * k).all()


def test_budgeted_depends_on_gaps_only_and_not_on_the_unit():
    rng = np.random.default_rng(2)
    for _ in range(300):
        n = int(rng.integers(2, 30))
        scores, budgets, caps = rng.integers(-8, 9, n) / 8.0, 10.0 ** rng.uniform(-3, 1, n), rng.integers(1, 5, n).astype(float)
        k = max(1.0, float(rng.integers(1, int(caps.sum()) + 1)) - 0.5)
        quotas = budgeted(scores, budgets, k, caps)
        np.testing.assert_allclose(budgeted(scores + 1024.0, budgets, k, caps), quotas, rtol=1e-9)
        np.testing.assert_allclose(budgeted(scores * 1024.0, budgets * 1024.0, k, caps), quotas, rtol=1e-9)


def test_t4_inverse_gap_weighting_without_caps_for_one_query():
    """T4, Foster and Rakhlin 2020: lambda_i = 1 / (gamma (nu - s_i)), one nu for all, sum 1; greedy and uniform in the limits."""
    scores, free = np.array([0.9, 0.3, 0.7, 0.1, 0.7]), np.full(5, 2.0)
    for gamma in (0.01, 1.0, 30.0, 1e4):
        quotas = budgeted(scores, np.full(5, 1.0 / gamma), 1, free)
        nu = scores + 1.0 / (gamma * quotas)
        np.testing.assert_allclose(nu, nu[0], rtol=1e-9)
        assert quotas.sum() == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(budgeted(scores, np.full(5, 1e-12), 1, free), [1, 0, 0, 0, 0], atol=1e-10)  # gamma to infinity
    np.testing.assert_allclose(budgeted(scores, np.full(5, 1e12), 1, free), 0.2, rtol=1e-9)  # gamma to 0


def test_exploration_never_gives_up_more_than_the_sum_of_the_budgets():
    """The certificate of the design: greedy value minus sum(lambda * scores) <= sum(budgets), here on 10,000 random problems."""
    for number, (scores, budgets, k, caps) in enumerate(random_cases(CASES)):
        quotas = budgeted(scores, budgets, k, caps)
        check_distribution(quotas, k, caps)
        rounding = 1e-12 * np.abs(scores).max() * min(k, caps.sum())
        assert greedy_value(scores, k, caps) - quotas @ scores <= budgets.sum() * (1.0 + 1e-9) + rounding, f"case {number}"


def test_budgeted_meets_its_optimality_conditions():
    """One nu for all that are free: budgets / lambda + scores; not below it at the caps. Gaps are taken from the best free score."""
    for number, (scores, budgets, k, caps) in enumerate(random_cases(3_000, seed=3)):
        quotas = budgeted(scores, budgets, k, caps)
        free = quotas < caps
        if not free.any():
            continue
        gaps = scores[free].max() - scores
        nu = budgets / quotas - gaps
        rounding = 1e-9 * (np.abs(gaps) + budgets / quotas).max()
        assert np.ptp(nu[free]) <= rounding, f"case {number}"
        assert (nu[~free] >= nu[free].max() - rounding).all(), f"case {number}"


def test_no_other_feasible_quotas_have_a_better_objective():
    rng = np.random.default_rng(4)
    for scores, budgets, k, caps in random_cases(300, seed=5):
        objective = lambda quotas, s=scores, b=budgets: quotas @ s + b @ np.log(quotas)  # noqa: E731
        best = objective(budgeted(scores, budgets, k, caps))
        for _ in range(10):
            other = proportional(10.0 ** rng.uniform(-3, 3, len(scores)), k, caps)
            assert objective(other) <= best + 1e-9 * (abs(best) + np.abs(scores).max() * k + budgets.sum())


def test_budgeted_agrees_with_a_root_finder():
    rng = np.random.default_rng(6)

    def filled(nu: float, s: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        return np.where((nu - s) * c <= b, c, b / np.maximum(nu - s, b / c))

    for _ in range(500):
        n = int(rng.integers(1, 40))
        scores, budgets, caps = rng.normal(size=n), 10.0 ** rng.uniform(-3, 1, n), rng.uniform(0.1, 10.0, n)
        k = caps.sum() * rng.uniform(0.01, 0.99)
        excess = lambda nu, s=scores, b=budgets, c=caps, k=k: filled(nu, s, b, c).sum() - k  # noqa: E731
        nu = brentq(excess, scores.min(), scores.max() + budgets.sum() / k + 1e-9, xtol=1e-15, rtol=1e-15)
        np.testing.assert_allclose(budgeted(scores, budgets, k, caps), filled(nu, scores, budgets, caps), rtol=1e-7)


@pytest.mark.parametrize(
    ("scores", "budgets", "k", "caps"),
    [
        ([0.9, 0.5, 0.1], [1e-20] * 3, 2, [1, 1, 1]),  # two are full, and what is left for the third is below the rounding of k
        ([-1520.0, -988.6, -255.1], [1e-7] * 3, 3, [3, 2, 1]),
        ([0.0, -1e5, -1e5, -1e5], [1e-3, 1e-12, 3e-12, 2e-12], 3, [1, 1, 1, 1]),  # ties far below the best, budgets below its rounding
    ],
)
def test_budgeted_divides_budgets_far_below_the_rounding_of_the_scores(scores, budgets, k, caps):
    quotas = budgeted(scores, budgets, k, caps)
    check_distribution(quotas, k, np.array(caps, float))
    assert greedy_value(np.array(scores), k, np.array(caps, float)) - quotas @ scores <= sum(budgets) + 1e-9


def test_the_budget_is_a_share_of_the_greedy_value_or_of_its_floor_divided_by_evidence():
    rng = np.random.default_rng(8)
    for _ in range(500):
        n, share, k = int(rng.integers(1, 40)), float(10.0 ** rng.uniform(-4, 0)), float(rng.integers(1, 30))
        scores, impressions, caps = (
            rng.normal(rng.choice([-1.0, 1.0]), 0.2, n),
            rng.gamma(0.5, 20.0, n),
            rng.integers(1, 6, n).astype(float),
        )
        prior = Rate(mean=float(rng.uniform(-0.1, 0.2)), strength=8.0)
        value = max(greedy_value(scores, k, caps), k * prior.mean, 1e-6)
        thin = 1.0 / (impressions + prior.strength)
        quotas = budget_by_evidence(scores, impressions, k, caps, prior=prior, share=share)
        np.testing.assert_allclose(quotas, budgeted(scores, share * value * thin / thin.sum(), k, caps), rtol=1e-6)


@law
@given(st.lists(weighted(), min_size=1, max_size=6), st.lists(scored(), min_size=1, max_size=6))
def test_many_decisions_at_once_get_the_quotas_that_each_gets_alone_to_the_last_bit(weighted_cases, scored_cases):
    def many(solve, cases, *options):
        *arrays, ks, caps = zip(*cases, strict=True)
        offsets = np.concatenate(([0], np.cumsum([len(cap) for cap in caps])))
        return solve(*map(np.concatenate, arrays), ks, np.concatenate(caps).astype(float), offsets=offsets).tobytes()

    def thin(scores, budgets, k, caps, offsets=None):
        return budget_by_evidence(scores, budgets, k, caps, prior=Rate(mean=0.1, strength=8.0), share=0.01, offsets=offsets)

    for solve, cases in ((proportional, weighted_cases), (budgeted, scored_cases), (thin, scored_cases)):
        assert many(solve, cases) == b"".join(solve(*case).tobytes() for case in cases)


def test_offsets_and_ks_that_do_not_fit_are_refused():
    for offsets in ([1, 3], [0, 2], [0, 2, 1, 3], [0, 4]):
        with pytest.raises(InvalidValueError, match=r"^offsets:"):
            proportional(ONE, np.ones(len(offsets) - 1), ONE, np.array(offsets))
    for k in ([1.0], [1.0, 0.0], [1.0, 1.0, 1.0], 1.0):
        with pytest.raises(InvalidValueError, match=r"^k:"):
            proportional(ONE, k, ONE, np.array([0, 1, 3]))


def test_a_decision_without_clusters_among_many_has_no_quotas():
    assert proportional(ONE, [1.0, 2.0, 1.0], ONE, np.array([0, 1, 1, 3])).tolist() == [1.0, 0.5, 0.5]


def test_a_larger_budget_draws_a_cluster_more_often():
    scores, caps = np.array([0.5, 0.4, 0.3]), np.ones(3)
    plain, spent = budgeted(scores, [0.01, 0.01, 0.01], 1, caps), budgeted(scores, [0.01, 0.01, 0.1], 1, caps)
    assert spent[2] > 2.0 * plain[2]


def test_the_greedy_value_of_these_tests_is_the_best_of_all_orders_of_filling():
    rng = np.random.default_rng(7)
    for _ in range(200):
        n = int(rng.integers(1, 5))
        scores, caps, k = rng.normal(size=n), rng.uniform(0.1, 3.0, n), float(rng.uniform(0.1, 6.0))
        values = []
        for order in itertools.permutations(range(n)):
            left, value = k, 0.0
            for i in order:
                take = min(left, caps[i])
                left, value = left - take, value + take * scores[i]
            values.append(value)
        assert greedy_value(scores, k, caps) == pytest.approx(max(values), abs=1e-12)


ONE = np.ones(3)
BAD_ARRAYS = [
    ([1.0, np.nan, 1.0], "[1]"),
    ([1.0, 1.0, np.inf], "[2]"),
    ([0.0, 1.0, 1.0], "[0]"),
    ([1.0, -1.0, 1.0], "[1]"),
    ([], ""),
    ([[1.0]], ""),
]
BAD_K = [0, -1, np.nan, np.inf]


@pytest.mark.parametrize(("bad", "place"), BAD_ARRAYS)
@pytest.mark.parametrize("argument", ["weights", "caps"])
def test_proportional_names_the_bad_argument_and_its_first_bad_element(argument, bad, place):
    with pytest.raises(InvalidValueError) as caught:
        proportional(**{"weights": ONE, "k": 1, "caps": ONE, argument: bad})
    assert caught.value.name == argument + place


@pytest.mark.parametrize(("bad", "place"), BAD_ARRAYS)
@pytest.mark.parametrize("argument", ["scores", "budgets", "caps"])
def test_budgeted_names_the_bad_argument_and_its_first_bad_element(argument, bad, place):
    if argument == "scores" and place and np.isfinite(bad).all():
        assert budgeted(bad, ONE, 1, ONE).sum() == pytest.approx(1.0)  # scores may be of any sign
        return
    with pytest.raises(InvalidValueError) as caught:
        budgeted(**{"scores": ONE, "budgets": ONE, "k": 1, "caps": ONE, argument: bad})
    assert caught.value.name == argument + place


@pytest.mark.parametrize("k", BAD_K)
def test_quotas_of_no_queries_are_refused(k):
    with pytest.raises(InvalidValueError, match=r"^k:"):
        proportional(ONE, k, ONE)
    with pytest.raises(InvalidValueError, match=r"^k:"):
        budgeted(ONE, ONE, k, ONE)


def test_lengths_that_differ_are_refused_by_name():
    with pytest.raises(InvalidValueError, match="weights and caps"):
        proportional(ONE, 1, np.ones(2))
    for position in range(3):
        arguments = [ONE, ONE, ONE]
        arguments[position] = np.ones(2)
        with pytest.raises(InvalidValueError, match="scores and budgets and caps"):
            budgeted(arguments[0], arguments[1], 1, arguments[2])


def test_quotas_never_alias_or_change_their_arguments():
    caps = np.array([1.0, 2.0])
    for quotas in (proportional([1.0, 1.0], 9, caps), budgeted([0.0, 0.0], [1.0, 1.0], 9, caps)):
        quotas[:] = 0.0
    np.testing.assert_array_equal(caps, [1.0, 2.0])
