"""Intervals of a replay: right on data whose truth is known, and paired."""

from __future__ import annotations

import numpy as np
import pytest

from examples.kuairand.estimates import lift, resamples, reward_per_impression


def test_a_policy_has_no_lift_over_itself() -> None:
    rng = np.random.default_rng(1)
    impressions = rng.integers(1, 9, 300).astype(float)
    reward = rng.binomial(impressions.astype(int), 0.3).astype(float)
    gain = lift(reward, impressions, reward, impressions, resamples(300, 200, rng))
    assert (gain.value, gain.low, gain.high) == (0.0, 0.0, 0.0)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        impressions = rng.integers(1, 9, 250).astype(float)
        rate = np.clip(rng.normal(0.3, 0.1, 250), 0.0, 1.0)  # impressions of a user share the user's rate
        reward = rng.binomial(impressions.astype(int), rate).astype(float)
        estimate = reward_per_impression(reward, impressions, resamples(250, 300, rng))
        assert estimate.low < estimate.value < estimate.high
        covered += estimate.low <= 0.3 <= estimate.high
    assert 180 <= covered <= 198


def test_a_lift_of_a_tenth_is_found() -> None:
    rng = np.random.default_rng(3)
    impressions = np.full(4000, 10.0)
    base, better = (rng.binomial(10, rate, 4000).astype(float) for rate in (0.40, 0.44))
    gain = lift(better, impressions, base, impressions, resamples(4000, 500, rng))
    assert gain.value == pytest.approx(0.1, abs=0.03)
    assert gain.low > 0.0
