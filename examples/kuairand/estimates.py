"""Means of a replay with intervals, resampled by user: users are independent, their impressions are not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bandit.types import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


def resamples(users: int, count: int, rng: np.random.Generator) -> Floats:
    """How often each user stands in each bootstrap resample, (count, users); one draw serves every policy, which pairs them."""
    return rng.multinomial(users, np.full(users, 1.0 / users), size=count).astype(np.float64)


def reward_per_impression(reward: Floats, impressions: Floats, drawn: Floats) -> Estimate:
    """Total reward over total impressions. Both (users,); `drawn` from `resamples`."""
    return _estimate(reward.sum() / impressions.sum(), (drawn @ reward) / (drawn @ impressions))


def lift(reward: Floats, impressions: Floats, base_reward: Floats, base_impressions: Floats, drawn: Floats) -> Estimate:
    """Relative gain in reward per impression over a base policy that played the same users: 0.02 is two per cent more."""
    ratio = (reward.sum() / impressions.sum()) / (base_reward.sum() / base_impressions.sum()) - 1.0
    again = ((drawn @ reward) / (drawn @ impressions)) / ((drawn @ base_reward) / (drawn @ base_impressions)) - 1.0
    return _estimate(ratio, again)


def _estimate(value: float, again: Floats) -> Estimate:
    low, high = np.quantile(again, [0.025, 0.975])
    return Estimate(value=float(value), low=float(low), high=float(high))
