"""Pool replay: logged exposures played again under a policy, each with its real outcome.

Each later exposure of a user belongs to the nearest of the user's clusters. A request selects queries; each query is shown the next
unused exposure of its cluster, in time order, and what really happened is the feedback. All policies play the same users to half of
their pool, so that there is something left to choose from until the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from bandit.records import Feedback, Query
from bandit.rewards.scheme import IMPRESSION
from bandit.types import Floats32, Ints

MINIMUM_EXPOSURES = 3  # of a user, in at least two clusters: with fewer there is nothing to choose
MINIMUM_CLUSTERS = 2


class Selected(Protocol):
    """What the replay needs to see of a selection."""

    @property
    def decision_id(self) -> str:
        """Echoed by the feedback."""

    @property
    def queries(self) -> Sequence[Query]:
        """What was drawn."""


class Select(Protocol):
    """The serving library's `select`, or anything that chooses like it."""

    def __call__(self, user_id: str, k: int, *, caps: Mapping[str, int], now: int, seed: int) -> Selected:
        """Choose at most k queries from the clusters in `caps`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """One logged exposure: what was shown when, and the actions that followed."""

    item_id: str
    at: int
    actions: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """One user's exposures by cluster, each list in time order; played until `stop` impressions."""

    user_id: str
    exposures: Mapping[str, Sequence[Exposure]]

    @property
    def size(self) -> int:
        """Exposures in all clusters."""
        return sum(len(group) for group in self.exposures.values())

    @property
    def stop(self) -> int:
        """Impressions to play: half of the pool."""
        return self.size // 2

    @property
    def playable(self) -> bool:
        """Whether a policy has anything to choose here."""
        return self.size >= MINIMUM_EXPOSURES and len(self.exposures) >= MINIMUM_CLUSTERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request to be played: k queries for a user at a time, UTC microseconds."""

    at: int
    user_id: str
    k: int


@dataclass(slots=True, kw_only=True)
class State:
    """What a replay has used up and earned: position in each (user, cluster), and each user's impressions and reward."""

    used: dict[tuple[str, str], int] = field(default_factory=dict)
    impressions: dict[str, int] = field(default_factory=dict)
    reward: dict[str, float] = field(default_factory=dict)
    decisions: int = 0


def nearest_cluster(vector: Floats32, medoids: Floats32, threshold: float) -> int:
    """Position of the medoid with the largest cosine to `vector`, -1 when none passes the threshold; all of unit length."""
    cosines = medoids @ vector
    best = int(np.argmax(cosines))
    return best if cosines[best] >= threshold else -1


def requests(pools: Sequence[Pool], k: int) -> list[Request]:
    """All requests in time order: those of a user are spread over the times of the user's own exposures."""
    found = []
    for pool in pools:
        times = np.sort([exposure.at for group in pool.exposures.values() for exposure in group])
        count = -(-pool.stop // k)
        for r in range(count):
            at = int(times[int((r + 0.5) * len(times) / count)])
            found.append(Request(at=at, user_id=pool.user_id, k=min(k, pool.stop - r * k)))
    return sorted(found, key=lambda request: (request.at, request.user_id))


def rounds(found: Sequence[Request], start: int, length: int) -> Iterator[tuple[int, list[Request]]]:
    """Requests by round of `length` microseconds, each with the round's end; rounds without requests are passed over."""
    by_round: dict[int, list[Request]] = {}
    for request in found:
        by_round.setdefault(max(request.at - start, 0) // length, []).append(request)
    for number in sorted(by_round):
        yield start + (number + 1) * length, by_round[number]


def play(
    request: Request, pool: Pool, state: State, select: Select, reward: Callable[[Sequence[str]], float], *, seed: int
) -> list[Feedback]:
    """Play one request and return its feedback: an impression for each query, and the actions that followed it.

    Args:
        request: the request.
        pool: its user's exposures.
        state: moved on by what is shown and earned.
        select: the policy's choice.
        reward: of one impression, from its actions.
        seed: of the draw.
    """
    left = {cluster_id: len(group) - state.used.get((pool.user_id, cluster_id), 0) for cluster_id, group in pool.exposures.items()}
    caps = {cluster_id: count for cluster_id, count in left.items() if count}
    selection = select(pool.user_id, request.k, caps=caps, now=request.at, seed=seed)
    state.decisions += 1
    events = []
    for number, query in enumerate(selection.queries):
        place = (pool.user_id, query.cluster_id)
        shown = pool.exposures[query.cluster_id][state.used.get(place, 0)]
        state.used[place] = state.used.get(place, 0) + 1
        state.impressions[pool.user_id] = state.impressions.get(pool.user_id, 0) + 1
        state.reward[pool.user_id] = state.reward.get(pool.user_id, 0.0) + reward(shown.actions)
        events += [
            Feedback(
                event_id=f"{selection.decision_id}/{number}/{action}",
                decision_id=selection.decision_id,
                user_id=pool.user_id,
                cluster_id=query.cluster_id,
                query_id=query.item_id,
                item_id=shown.item_id,
                action=action,
                occurred_at=request.at,
            )
            for action in (IMPRESSION, *shown.actions)
        ]
    return events


def pools_of(
    users: Sequence[str],
    items: Ints,
    exposures: Sequence[Exposure],
    clusters: Mapping[str, tuple[Sequence[str], Floats32]],
    vectors: Floats32,
    threshold: float,
) -> list[Pool]:
    """Every playable user's pool, in order of user id.

    Args:
        users: user of each exposure, in time order.
        items: row of each exposure's item in `vectors`.
        exposures: what was shown.
        clusters: each user's cluster ids and medoid vectors.
        vectors: of the items, unit length, float32 (items, d).
        threshold: least cosine between an exposure and its cluster's medoid.
    """
    groups: dict[str, dict[str, list[Exposure]]] = {}
    for user, item, exposure in zip(users, items.tolist(), exposures, strict=True):
        if user not in clusters:
            continue
        ids, medoids = clusters[user]
        place = nearest_cluster(vectors[item], medoids, threshold)
        if place >= 0:
            groups.setdefault(user, {}).setdefault(ids[place], []).append(exposure)
    pools = [Pool(user_id=user, exposures=by_cluster) for user, by_cluster in sorted(groups.items())]
    return [pool for pool in pools if pool.playable]
