"""What a decision is made from: a user's clusters, the evidence about them, the prior behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from bandit.errors import InvalidValueError

Floats: TypeAlias = npt.NDArray[np.float64]
Floats32: TypeAlias = npt.NDArray[np.float32]
Ints: TypeAlias = npt.NDArray[np.int64]

_MANY = 1000  # topics, from which on finding the different ones pays
MICROSECONDS_PER_DAY = 86_400_000_000
MICROSECONDS_PER_MINUTE = 60_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A mean reward per impression and how many impressions it is worth."""

    mean: float
    strength: float

    def __post_init__(self) -> None:
        """Refuse what is not a finite mean with a positive strength."""
        if not np.isfinite(self.mean):
            raise InvalidValueError("Rate.mean", expected="a finite number", received=self.mean)
        if not 0.0 < self.strength < np.inf:
            raise InvalidValueError("Rate.strength", expected="a finite number of impressions above 0", received=self.strength)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """The levels above the user: one global rate and the mean of each topic, already shrunk to it."""

    rate: Rate
    topic_means: dict[int, float] = field(default_factory=dict)

    def topic_mean(self, topic_ids: Ints) -> Floats:
        """Mean of each topic, shape of `topic_ids`; the global mean where a topic was never seen."""
        get, mean = self.topic_means.get, self.rate.mean
        topics, index = (topic_ids, slice(None)) if len(topic_ids) < _MANY else np.unique(topic_ids, return_inverse=True)
        return np.array([get(topic, mean) for topic in topics.tolist()], np.float64)[index]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A user's clusters as the batch clustering wrote them; n clusters, A action types.

    Shapes: (n,), but action_counts (n, A) in the order of `action_types`. `topic_history` is what impressions of the cluster's topic
    earned above their users' average before Query Rewards began; `item_counts` the different items that were engaged with. The query
    items of cluster i are `query_items[query_offsets[i]:query_offsets[i + 1]]`, with positive weights beside.
    Times are UTC microseconds.
    """

    cluster_ids: list[str]
    topic_ids: Ints
    topic_history: Floats
    item_counts: Ints
    action_types: list[str]
    action_counts: Floats
    importance: Floats
    last_action_at: Ints
    query_items: Sequence[str]
    query_weights: Floats
    query_offsets: Ints

    def __post_init__(self) -> None:
        """Refuse arrays that do not belong together."""
        n = len(self.cluster_ids)
        each = (
            len(self.topic_ids)
            == len(self.topic_history)
            == len(self.item_counts)
            == len(self.action_counts)
            == len(self.importance)
            == len(self.last_action_at)
            == len(self.query_offsets) - 1
            == n
        )
        if not each or len(self.query_weights) != len(self.query_items):
            self._refuse(n)

    def _refuse(self, n: int) -> None:
        expected = dict.fromkeys(("topic_ids", "topic_history", "item_counts", "action_counts", "importance", "last_action_at"), n)
        expected |= {"query_offsets": n + 1, "query_weights": len(self.query_items)}
        for name, length in expected.items():
            if excess := len(getattr(self, name)) - length:
                raise InvalidValueError(f"Profile.{name}", expected=f"the length that {n} clusters ask for", received=f"{excess:+d}")

    def __len__(self) -> int:
        """Number of clusters."""
        return len(self.cluster_ids)

    @property
    def actions(self) -> Floats:
        """Number of actions of each cluster, of all types, (n,)."""
        totals: Floats = np.add.reduce(self.action_counts, axis=1)
        return totals


class Sum(NamedTuple):
    """One decayed sum: which half-life it fades by, and what it adds up (`bandit.rewards.sums.SumsDefinition`)."""

    name: str
    half_life: Literal["session", "long"]
    of: Literal["impressions", "reward", "draws"]


SUMS = (
    Sum("impressions_session", "session", "impressions"),
    Sum("reward_session", "session", "reward"),
    Sum("impressions_long", "long", "impressions"),
    Sum("reward_long", "long", "reward"),
    Sum("draws_session", "session", "draws"),
)
SUM_NAMES = tuple(each.name for each in SUMS)


@dataclass(frozen=True, slots=True)
class Sums:
    """The sums of each cluster, float64 (5, ...): one row a sum, in the order of `SUMS`."""

    values: Floats

    def __post_init__(self) -> None:
        """Refuse what has no row for each sum."""
        if self.values.ndim < 2 or len(self.values) != len(SUM_NAMES):
            raise InvalidValueError("Sums.values", expected=f"shape ({len(SUM_NAMES)}, n)", received=self.values.shape)

    @property
    def impressions_session(self) -> Floats:
        """Impressions, session half-life."""
        return self.values[0, ...]

    @property
    def reward_session(self) -> Floats:
        """Reward, session half-life."""
        return self.values[1, ...]

    @property
    def impressions_long(self) -> Floats:
        """Impressions, long half-life."""
        return self.values[2, ...]

    @property
    def reward_long(self) -> Floats:
        """Reward, long half-life."""
        return self.values[3, ...]

    @property
    def draws_session(self) -> Floats:
        """Queries drawn, session half-life."""
        return self.values[4, ...]

    def take(self, rows: Ints) -> Sums:
        """The sums of some of the clusters, by position."""
        return Sums(self.values.take(rows, axis=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterRewards:
    """A user's sums as the fold wrote them, (5, m), at reference time `as_of` (UTC microseconds).

    The m clusters need not be those of the profile: rows are matched by id (`bandit.rewards.decay.align`).
    """

    cluster_ids: list[str]
    as_of: int
    sums: Sums
