"""Shrinkage towards the level above: global, topic, user, cluster."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit.errors import InvalidValueError
from bandit.rewards.prior import engagement_rate, fit_prior
from bandit.types import Prior, Rate
from tests.strategies import law, positive


def test_t5_one_click_of_two_impressions_with_prior_ten_of_a_hundred():
    """T5, Metarank's documentation: 11/102 = 10.78 %."""
    rate = engagement_rate(1.0, 2.0, Rate(mean=0.1, strength=100.0))
    assert float(rate) == pytest.approx(11 / 102, rel=1e-15)
    assert round(100 * float(rate), 2) == 10.78


@law
@given(st.floats(-1.0, 2.0), positive(1e-6, 1e6), st.floats(-1.0, 2.0), positive(1e-3, 1e3))
def test_a_shrunk_rate_lies_between_the_raw_rate_and_the_prior(raw, impressions, mean, strength):
    rate = float(engagement_rate(raw * impressions, impressions, Rate(mean=mean, strength=strength)))
    assert min(raw, mean) - 1e-9 <= rate <= max(raw, mean) + 1e-9


def test_without_evidence_the_rate_is_the_prior_and_with_much_of_it_the_raw_rate():
    prior = Rate(mean=0.3, strength=8.0)
    np.testing.assert_allclose(engagement_rate(np.array([0.0, 5e8]), np.array([0.0, 1e9]), prior), [0.3, 0.5], rtol=1e-7)


def test_evidence_in_two_parts_shrinks_to_the_same_rate_as_the_whole():
    """The posterior of the first part is the prior of the second."""
    first = float(engagement_rate(2.0, 5.0, Rate(mean=0.1, strength=8.0)))
    both = engagement_rate(1.0, 4.0, Rate(mean=first, strength=13.0))
    assert float(both) == pytest.approx(float(engagement_rate(3.0, 9.0, Rate(mean=0.1, strength=8.0))), rel=1e-14)


def test_a_topic_that_was_never_seen_has_the_global_mean():
    prior = Prior(rate=Rate(mean=0.2, strength=4.0), topic_means={7: 0.6})
    topics = np.array([7, 8])
    np.testing.assert_allclose(prior.topic_mean(topics), [0.6, 0.2])  # topic 8 was never seen: global


def test_fit_prior_counts_impressions_not_clusters_and_shrinks_topics_to_the_global_mean():
    prior = fit_prior(np.array([3, 3, 5]), np.array([1.0, 8.0, 0.0]), np.array([2.0, 8.0, 20.0]), strength=10.0)
    assert prior.rate == Rate(mean=0.3, strength=10.0)
    assert prior.topic_means == {3: pytest.approx((9 + 3) / 20), 5: pytest.approx(3 / 30)}


def test_fit_prior_does_not_depend_on_the_order_of_clusters():
    rng = np.random.default_rng(0)
    topics, impressions = rng.integers(0, 4, 50), rng.uniform(0, 9, 50)
    reward, order = impressions * rng.uniform(-1, 2, 50), rng.permutation(50)
    left, right = fit_prior(topics, reward, impressions, 8.0), fit_prior(topics[order], reward[order], impressions[order], 8.0)
    assert left.rate.mean == pytest.approx(right.rate.mean, rel=1e-12)
    assert left.topic_means == pytest.approx(right.topic_means, rel=1e-12)


@pytest.mark.parametrize("n", [0, 3])
def test_fit_prior_of_nothing_seen_is_zero_everywhere(n):
    prior = fit_prior(np.arange(n), np.zeros(n), np.zeros(n), strength=8.0)
    assert prior.rate.mean == 0.0
    assert prior.topic_means == dict.fromkeys(range(n), 0.0)


@pytest.mark.parametrize(("mean", "strength"), [(np.nan, 1.0), (np.inf, 1.0), (0.1, 0.0), (0.1, -1.0), (0.1, np.nan), (0.1, np.inf)])
def test_a_rate_is_finite_and_its_strength_positive(mean, strength):
    with pytest.raises(InvalidValueError, match=r"^Rate\."):
        Rate(mean=mean, strength=strength)
