"""SplitMix64 against the numbers that its authors' program prints, and even over its range."""

from __future__ import annotations

import numpy as np

from bandit.policy.splitmix import SplitMix64

# Of seed 1234567, as published on Rosetta Code (task "Pseudo-random numbers/Splitmix64").
PUBLISHED = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]


def test_the_published_numbers():
    assert SplitMix64(1234567).random(5) == [(number >> 11) * 2.0**-53 for number in PUBLISHED]


def test_numbers_go_on_where_they_ended_and_only_the_low_64_bits_of_a_seed_count():
    whole, parts = SplitMix64(5).random(7), SplitMix64(5 + 2**64)
    assert whole == parts.random(3) + parts.random(0) + parts.random(4)


def test_seeds_that_follow_each_other_give_numbers_that_do_not():
    """10,000 seeds, ten numbers of each: each place is even over [0, 1), and no two places go together."""
    numbers = np.array([SplitMix64(seed).random(10) for seed in range(10_000)])
    assert ((numbers >= 0.0) & (numbers < 1.0)).all()
    counts = np.array([np.histogram(place, 20, (0.0, 1.0))[0] for place in numbers.T])
    assert (((counts - 500) ** 2 / 500).sum(axis=1) < 44.0).all()  # chi squared, 19 degrees of freedom: one in a thousand
    assert np.abs(np.corrcoef(numbers.T) - np.eye(10)).max() < 0.04
    assert abs(np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1]) < 0.04
