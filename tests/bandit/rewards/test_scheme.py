"""Reward of one impression."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit.errors import InvalidValueError
from bandit.rewards.scheme import IMPRESSION, RewardScheme
from tests.strategies import law

SCHEME = RewardScheme(weights={"repin": 1.0, "click": 0.5, "hide": -1.0}, minimum=-1.0, maximum=2.0)
actions = st.lists(st.sampled_from(SCHEME.action_types), max_size=12)


@law
@given(actions)
def test_the_reward_is_the_clipped_sum_whatever_the_order_and_the_number_of_impression_events(done):
    expected = min(max(sum(SCHEME.weights.get(action, 0.0) for action in done), -1.0), 2.0)
    assert SCHEME.impression_reward(done) == pytest.approx(expected)
    assert SCHEME.impression_reward([*reversed(done), IMPRESSION]) == pytest.approx(expected)


def test_silence_is_zero():
    assert SCHEME.impression_reward([]) == 0.0
    assert SCHEME.impression_reward([IMPRESSION]) == 0.0


def test_the_sum_is_clipped_not_each_action():
    assert SCHEME.impression_reward(["repin"] * 5 + ["hide"]) == 2.0
    assert SCHEME.impression_reward(["hide", "hide", "click"]) == -1.0
    assert SCHEME.impression_reward(["repin", "hide"]) == 0.0


def test_an_unknown_action_is_refused_by_name():
    with pytest.raises(InvalidValueError, match="'share'"):
        SCHEME.impression_reward(["repin", "share"])


def test_action_types_start_with_the_impression_and_keep_the_order_of_the_settings():
    assert SCHEME.action_types == ["impression", "repin", "click", "hide"]
    assert RewardScheme(weights={"a": 1.0, IMPRESSION: 0.0}, minimum=0.0, maximum=1.0).action_types == ["impression", "a"]


@pytest.mark.parametrize(
    ("weights", "minimum", "maximum"),
    [
        ({}, 0.0, 0.0),
        ({}, 0.5, 1.0),
        ({}, -1.0, -0.5),
        ({}, np.nan, 1.0),
        ({}, -1.0, np.nan),
        ({"repin": 3.0}, -1.0, 2.0),
        ({"hide": -3.0}, -1.0, 2.0),
        ({"repin": np.nan}, -1.0, 2.0),
        ({IMPRESSION: 0.5}, -1.0, 2.0),
    ],
)
def test_ranges_without_silence_and_weights_outside_of_the_range_are_refused(weights, minimum, maximum):
    with pytest.raises(InvalidValueError):
        RewardScheme(weights=weights, minimum=minimum, maximum=maximum)
