"""Decayed sums: moving them in time, and lining them up with a user's clusters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bandit.errors import InvalidValueError
from bandit.types import ClusterRewards, Evidence, Floats, Ints, Profile


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
    sums, last = np.zeros((5, n)), np.zeros(n, np.int64)
    if rewards is not None and rewards.cluster_ids:
        elapsed = now - rewards.as_of
        _gather(
            sums,
            last,
            profile.cluster_ids,
            dict(zip(rewards.cluster_ids, range(len(rewards.cluster_ids)), strict=True)),
            rewards.impressions_session,
            rewards.reward_session,
            rewards.draws_session,
            rewards.impressions_long,
            rewards.reward_long,
            rewards.last_impression_at,
            decay(elapsed, half_lives.session),
            decay(elapsed, half_lives.long),
        )
    return Evidence(
        impressions_session=sums[0],
        reward_session=sums[1],
        draws_session=sums[2],
        impressions_long=sums[3],
        reward_long=sums[4],
        last_impression_at=last,
    )


def _gather(  # noqa: PLR0913, PLR0917 -- arrays by themselves: what compiled code takes
    sums: Floats,
    last: Ints,
    cluster_ids: list[str],
    place_of: dict[str, int],
    impressions_session: Floats,
    reward_session: Floats,
    draws_session: Floats,
    impressions_long: Floats,
    reward_long: Floats,
    last_impression_at: Ints,
    session: float,
    long: float,
) -> None:
    """Fill `sums` (5, n) and `last` (n,) with the decayed sums of the clusters that have a place in the others, (m,)."""
    for row, cluster_id in enumerate(cluster_ids):
        found = place_of.get(cluster_id)
        if found is not None:
            place = found
            sums[0, row] = impressions_session[place] * session
            sums[1, row] = reward_session[place] * session
            sums[2, row] = draws_session[place] * session
            sums[3, row] = impressions_long[place] * long
            sums[4, row] = reward_long[place] * long
            last[row] = last_impression_at[place]
