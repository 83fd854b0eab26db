"""Worlds of users and clusters whose worth is known, so that a policy can be measured against the best it could have done.

Nothing here depends on what a policy does: a world of one seed takes the same course under all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bandit.types import MICROSECONDS_PER_DAY, MICROSECONDS_PER_MINUTE, Floats, Floats32, Ints, Profile
from tests.strategies import NOW

ROUND = 15 * MICROSECONDS_PER_MINUTE
CLUSTERS = (5, 60)  # fewest and most of a user
QUERIES = 5  # draws of one decision, all of which one cluster may take
IMPRESSIONS = 4  # of each drawn query


class World(Protocol):
    """Users x places; a place holds one cluster at a time, and `there` tells which places are taken.

    `engagement` and `hiding` are probabilities for an impression. A newborn has an identifier of its own, so that late feedback of its
    predecessor is not credited to it.
    """

    round: int
    there: np.ndarray
    topics: Ints
    actions: Floats
    age_days: Floats
    cluster_ids: np.ndarray
    engagement: Floats
    hiding: float

    def advance(self) -> np.ndarray:
        """Let one round pass; returns a mask of the places where a new cluster took over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How the drifting world is made; the unit of every spread is log-odds of an engagement."""

    users: int = 40
    topics: int = 24
    base: float = -1.75
    topic_spread: float = 0.7
    topic_memory: float = 0.995  # correlation of a topic's worth with the round before
    taste_spread: float = 0.6  # of a user for a topic, for good
    user_spread: float = 0.4
    cluster_spread: float = 1.0
    staleness: float = 0.25  # lost with the logarithm of days since the last action
    size_when_stale: float = 0.05  # lost by a large cluster that is old, won by one that is fresh
    abrupt: float = 0.002  # share of clusters that change outright each round
    births: float = 0.05  # per user and round
    actions: float = 0.002  # new actions per cluster and round, which make it young again
    hiding: float = 0.03  # of the impressions without engagement


class DriftingWorld:
    """Topics drift, some clusters change abruptly, and clusters are born with one to three actions in the place of others."""

    def __init__(self, seed: int, drift: Drift | None = None) -> None:
        self.drift = d = drift or Drift()
        self._rng = rng = np.random.default_rng(seed)
        shape = d.users, CLUSTERS[1]
        self.round = 0
        self.hiding = d.hiding
        self.there = np.arange(CLUSTERS[1]) < rng.integers(CLUSTERS[0], CLUSTERS[1] + 1, d.users)[:, None]
        self.topics = rng.integers(0, d.topics, shape)
        self.actions = np.ceil(rng.lognormal(2.2, 1.2, shape))
        self.age_days = rng.lognormal(np.log(15.0), 1.2, shape)
        self.cluster_ids = identifiers(shape)
        self._topic = rng.normal(0.0, d.topic_spread, d.topics)
        self._taste = rng.normal(0.0, d.taste_spread, (d.users, d.topics))
        self._user = rng.normal(0.0, d.user_spread, (d.users, 1))
        self._cluster = rng.normal(0.0, d.cluster_spread, shape)
        self.engagement = self._engagement()

    def advance(self) -> np.ndarray:
        d, rng, shape = self.drift, self._rng, self.there.shape
        self.round += 1
        self._topic = d.topic_memory * self._topic + np.sqrt(1.0 - d.topic_memory**2) * rng.normal(0.0, d.topic_spread, d.topics)
        acted = rng.random(shape) < d.actions
        self.actions += acted
        self.age_days = np.where(acted, 0.0, self.age_days + ROUND / MICROSECONDS_PER_DAY)
        newborn = np.zeros(shape, bool)
        place = (rng.random(d.users) * self.there.sum(axis=1)).astype(np.intp)
        newborn[np.arange(d.users), place] = rng.random(d.users) < d.births
        self.topics = np.where(newborn, rng.integers(0, d.topics, shape), self.topics)
        self.actions = np.where(newborn, rng.integers(1, 4, shape), self.actions)
        self.age_days[newborn] = 0.0
        self.cluster_ids[newborn] += f".{self.round}"
        changed = newborn | (rng.random(shape) < d.abrupt)
        self._cluster = np.where(changed, rng.normal(0.0, d.cluster_spread, shape), self._cluster)
        self.engagement = self._engagement()
        return newborn

    def _engagement(self) -> Floats:
        d, age = self.drift, np.log1p(self.age_days)
        odds = d.base + self._topic[self.topics] + np.take_along_axis(self._taste, self.topics, axis=1) + self._user + self._cluster
        odds += d.staleness * (3.0 - age) - d.size_when_stale * np.log1p(self.actions) * (age - 1.5)
        return np.where(self.there, 1.0 / (1.0 + np.exp(-odds)), 0.0)


class OneClusterWorld:
    """The obvious answer: every user engages with half of what comes from one cluster, and with nothing else; nothing changes."""

    def __init__(self, seed: int, users: int = 20, clusters: int = 20) -> None:
        rng, shape = np.random.default_rng(seed), (users, clusters)
        self.round = 0
        self.hiding = 0.0
        self.there = np.ones(shape, bool)
        self.topics = rng.integers(0, 5, shape)
        self.actions = rng.integers(1, 100, shape).astype(np.float64)
        self.age_days = np.full(shape, 10.0)
        self.cluster_ids = identifiers(shape)
        self.engagement = np.where(np.arange(clusters) == rng.integers(0, clusters, (users, 1)), 0.5, 0.0)

    def advance(self) -> np.ndarray:
        self.round += 1
        return np.zeros(self.there.shape, bool)


def now(world: World) -> int:
    """Time of the world's round, UTC microseconds."""
    return NOW + world.round * ROUND


def identifiers(shape: tuple[int, int]) -> np.ndarray:
    """Identifiers of the first clusters, (users, places)."""
    return np.array([[f"{user}.{place}" for place in range(shape[1])] for user in range(shape[0])], object)


def profiles(world: World) -> list[Profile]:
    """What the clustering would have written of each user; items and history are left out, for the world has none."""
    importance = world.actions * np.exp(-0.01 * world.age_days)
    last = now(world) - (world.age_days * MICROSECONDS_PER_DAY).astype(np.int64)
    return [
        Profile(
            cluster_ids=world.cluster_ids[user, there].tolist(),
            topic_ids=world.topics[user, there],
            topic_history=np.zeros(there.sum()),
            item_counts=world.actions[user, there].astype(np.int64),
            action_types=["repin"],
            action_counts=world.actions[user, there, None],
            importance=importance[user, there],
            last_action_at=last[user, there],
            query_items=[],
            query_weights=np.zeros(0),
            query_offsets=np.zeros(there.sum() + 1, np.int64),
        )
        for user, there in enumerate(world.there)
    ]


def worth(world: World) -> Floats:
    """Expected reward of an impression, (users, places), with 1 for an engagement and -1 for a hide; 0 where there is no cluster."""
    return np.where(world.there, world.engagement - world.hiding * (1.0 - world.engagement), 0.0)


def best(scores: Floats) -> Ints:
    """Draws of whoever gives all to the cluster with the highest score: one row per user, (users, places)."""
    return QUERIES * np.eye(scores.shape[1], dtype=np.int64)[scores.argmax(axis=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one round of one player brought: a row per drawn cluster, `cells` its user * places + place; arrays (rows,)."""

    at: int
    cells: Ints
    cluster_ids: np.ndarray
    draws: Ints
    engagements: Ints
    hides: Ints
    features: Floats32

    @property
    def impressions(self) -> Ints:
        """None gets lost."""
        return IMPRESSIONS * self.draws

    @property
    def rate(self) -> Floats:
        """Reward per impression."""
        return (self.engagements - self.hides) / self.impressions


def happen(world: World, draws: Ints, features: Floats32, rng: np.random.Generator) -> Outcome:
    """Show what the draws (users, places) bring, and see who engages and who hides."""
    user, place = np.nonzero(draws)
    taken = draws[user, place]
    engagements = rng.binomial(IMPRESSIONS * taken, world.engagement[user, place])
    return Outcome(
        at=now(world),
        cells=user * draws.shape[1] + place,
        cluster_ids=world.cluster_ids[user, place],
        draws=taken,
        engagements=engagements,
        hides=rng.binomial(IMPRESSIONS * taken - engagements, world.hiding),
        features=features[user, place],
    )
