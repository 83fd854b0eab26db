"""Decayed sums: moving them in time, and lining them up with a user's clusters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bandit.errors import InvalidValueError
from bandit.types import ClusterRewards, Evidence, Floats, Profile


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
    place = {cluster_id: index for index, cluster_id in enumerate(rewards.cluster_ids)}
    rows = np.array([place.get(cluster_id, -1) for cluster_id in profile.cluster_ids], np.intp)
    known = rows >= 0
    session = decay(now - rewards.as_of, half_lives.session)
    long = decay(now - rewards.as_of, half_lives.long)

    def at(sums: Floats, factor: float) -> Floats:
        return np.where(known, sums[rows] * factor, 0.0)

    return Evidence(
        impressions_session=at(rewards.impressions_session, session),
        reward_session=at(rewards.reward_session, session),
        impressions_long=at(rewards.impressions_long, long),
        reward_long=at(rewards.reward_long, long),
        draws_session=at(rewards.draws_session, session),
        last_impression_at=np.where(known, rewards.last_impression_at[rows], 0),
    )
