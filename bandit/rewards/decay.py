"""Decayed sums: moving them in time, and lining them up with a user's clusters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bandit.errors import InvalidValueError
from bandit.types import SUMS, ClusterRewards, Floats, Profile, Sums

_HALF_LIFE_OF = np.array([("session", "long").index(each.half_life) for each in SUMS])


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

    def factors(self, elapsed: int) -> Floats:
        """What `elapsed` microseconds leave of each sum, (5,), in the order of `Sums`."""
        return np.array((decay(elapsed, self.session), decay(elapsed, self.long))).take(_HALF_LIFE_OF)


def decay(elapsed: int, half_life: int) -> float:
    """Factor 2^(-elapsed / half_life) that moves a decayed sum forward by `elapsed` microseconds; 1 when time ran back."""
    return float(2.0 ** (-max(elapsed, 0) / half_life))


def align(profile: Profile, rewards: ClusterRewards | None, now: int, half_lives: HalfLives) -> Sums:
    """Sums of each of the profile's clusters at time `now`; zero for a cluster that the rewards do not name.

    Clusters are matched by id, never by position: the two views have different writers.
    """
    values = np.zeros((len(SUMS), len(profile)))
    if rewards is not None and rewards.cluster_ids:
        positions = dict(zip(rewards.cluster_ids, range(len(rewards.cluster_ids)), strict=True))
        _gather(values, profile.cluster_ids, positions, rewards.sums.values, half_lives.factors(now - rewards.as_of))
    return Sums(values)


def _gather(values: Floats, cluster_ids: list[str], positions: dict[str, int], stored: Floats, factors: Floats) -> None:
    """Fill `values` (5, n) with the stored sums (5, m) of the clusters that have a position there, each times its factor, (5,)."""
    for row, cluster_id in enumerate(cluster_ids):
        known = positions.get(cluster_id)
        if known is not None:
            position = known
            for column in range(factors.shape[0]):
                values[column, row] = stored[column, position] * factors[column]
