"""Decayed sums: moving them in time, and lining them up with a user's clusters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bandit.errors import InvalidValueError
from bandit.types import ClusterRewards, Evidence, Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfLives:
    """How fast evidence fades, in microseconds: within the session, and in the long run."""

    session: int
    long: int

    def __post_init__(self) -> None:
        """Refuse half-lives that are not positive."""
        for name in ("session", "long"):
            if not getattr(self, name) > 0:
                raise InvalidValueError(f"half-life {name!r}", expected="more than 0 microseconds", received=getattr(self, name))


def decay(elapsed: int, half_life: int) -> float:
    """Factor 2^(-elapsed / half_life) that moves a decayed sum forward by `elapsed` microseconds; 1 when time ran back."""
    return float(2.0 ** (-max(elapsed, 0) / half_life))


def align(profile: Profile, rewards: ClusterRewards | None, now: int, half_lives: HalfLives) -> Evidence:
    """Evidence of each of the profile's clusters at time `now`; zero for a cluster that the rewards do not name.

    Clusters are matched by id, never by position: the two views have different writers.
    """
    n = len(profile)
    if rewards is None or not rewards.cluster_ids:
        zero = np.zeros(n)
        return Evidence(
            impressions_session=zero,
            reward_session=zero,
            impressions_long=zero,
            reward_long=zero,
            draws_session=zero,
            last_impression_at=np.zeros(n, np.int64),
        )
    m = len(rewards.cluster_ids)
    place = dict(zip(rewards.cluster_ids, range(m), strict=True))
    rows = np.array([place.get(cluster_id, m) for cluster_id in profile.cluster_ids], np.intp)
    sums = np.zeros((5, m + 1))  # the last column is what a cluster without rewards gets
    sums[0, :m], sums[1, :m], sums[2, :m] = rewards.impressions_session, rewards.reward_session, rewards.draws_session
    sums[3, :m], sums[4, :m] = rewards.impressions_long, rewards.reward_long
    sums = sums[:, rows]
    sums[:3] *= decay(now - rewards.as_of, half_lives.session)
    sums[3:] *= decay(now - rewards.as_of, half_lives.long)
    last = np.zeros(m + 1, np.int64)
    last[:m] = rewards.last_impression_at
    return Evidence(
        impressions_session=sums[0],
        reward_session=sums[1],
        draws_session=sums[2],
        impressions_long=sums[3],
        reward_long=sums[4],
        last_impression_at=last[rows],
    )
