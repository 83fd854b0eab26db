"""What the estimators and their intervals promise, over many repetitions of worlds whose true values are known."""

from __future__ import annotations

import numpy as np
import pytest

from bandit.ope.estimators import ESTIMATORS
from bandit.ope.intervals import percentiles, resample, sequence_bounds
from tests.slates import Slates, normal_interval, slates

DECISIONS, REPETITIONS = 2000, 150


@pytest.fixture(scope="module")
def world() -> Slates:
    return slates()


def test_self_normalised_weights_by_inclusion_are_unbiased_and_far_quieter_than_weights_by_sequence(world):
    """15 clusters, 3 drawn, 2,000 decisions, 150 repetitions."""
    snips, values, by_sequence = ESTIMATORS["snips"], [], []
    for seed in range(REPETITIONS):
        batch, weights = world.play(DECISIONS, np.random.default_rng(seed))
        values.append(snips.estimate(snips.observe(batch)))
        by_sequence.append((weights * batch.per_decision(batch.reward)).mean())
    bias, deviation = np.mean(values) - world.truth, np.std(values, ddof=1)
    assert abs(bias) <= 2.0 * deviation / np.sqrt(REPETITIONS)
    assert np.std(by_sequence, ddof=1) >= 3.0 * deviation


@pytest.mark.parametrize("name", ["ips", "dr", "pseudo_inverse"])
def test_normal_intervals_cover_the_truth_as_often_as_they_say(world, name):
    estimator, hits, repetitions = ESTIMATORS[name], 0, 1500
    truth = world.truth
    if name == "pseudo_inverse":  # exact for independent slots: a world of its own, one slot
        world = slates(1, n=8, k=1)
        truth = world.truth
    for seed in range(repetitions):
        batch, _ = world.play(DECISIONS, np.random.default_rng([1, seed]))
        interval = normal_interval(estimator.observe(batch))
        hits += interval.low <= truth <= interval.high
    assert 0.93 <= hits / repetitions <= 0.97


@pytest.mark.parametrize("name", ["snips", "sndr"])
def test_intervals_resampled_by_user_cover_the_truth_as_often_as_they_say(world, name):
    estimator, hits, repetitions = ESTIMATORS[name], 0, 600
    for seed in range(repetitions):
        rng = np.random.default_rng([2, seed])
        batch, _ = world.play(DECISIONS, rng, users=400)
        state = estimator.observe(batch)
        interval = percentiles(estimator, state, resample(state, rng, 400))
        hits += interval.low <= world.truth <= interval.high
    assert 0.93 <= hits / repetitions <= 0.97


@pytest.mark.parametrize("name", ["ips", "dr"])
def test_the_confidence_sequence_looked_at_after_every_decision_is_seldom_ever_wrong(world, name):
    """2,000 looks a run, from the first decision on; the range of the weighted reward is known of the world."""
    logged, target = world.inclusion
    high = 3.0 * float((target / logged).max())
    wrong, repetitions, width = 0, 500, 0.0
    for seed in range(repetitions):
        batch, _ = world.play(DECISIONS, np.random.default_rng([3, seed]))
        terms = ESTIMATORS[name].terms(batch)[:, 0]
        low_end, high_end = sequence_bounds(
            np.arange(1, DECISIONS + 1), terms.cumsum(), (terms**2).cumsum(), 0.0 if name == "ips" else -high, high, 0.05
        )
        wrong += bool(((low_end > world.truth) | (high_end < world.truth)).any())
        width += (high_end[-1] - low_end[-1]) / repetitions
    assert wrong / repetitions < 0.05
    assert width < 0.6 * world.truth  # and it says something
