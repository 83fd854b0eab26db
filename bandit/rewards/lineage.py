"""Lineage: which cluster the evidence of an old cluster belongs to, once the user's items have been clustered anew.

Each engaged item carries an equal part of its cluster's evidence: where the items went, the sums go, by the same shares. So what stays
together keeps its sums exactly, and splits and merges conserve totals. Times are UTC microseconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

import msgspec

from bandit.errors import InvalidValueError

Item = TypeVar("Item", bound=Hashable)
_Intervals: TypeAlias = list[tuple[int, dict[str, float]]]  # (until, owners), ascending; together they tile the time
_ALWAYS, _BEFORE_ALL = 2**63 - 1, -(2**63)


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """A part of an old cluster that went to a new one.

    `share` is the part of the old cluster's members, among those that still exist anywhere in the new clustering, that are now in
    `to_cluster`; within (0, 1]. The shares of one `from_cluster` sum to 1.
    """

    from_cluster: str
    to_cluster: str
    share: float

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        if not 0.0 < self.share <= 1.0:
            raise InvalidValueError("Move.share", expected="a number within (0, 1]", received=self.share)


class Reclustering(msgspec.Struct, frozen=True, kw_only=True):
    """What changed when one user's clusters were recomputed; clusters whose members all stayed are left out.

    A cluster none of whose members still exists has no moves: its sums stay under its id.
    """

    user_id: str
    effective_at: int
    moves: list[Move]


class OwnerInterval(NamedTuple):
    """Where events of `cluster_id` belong that happened within (after, until]."""

    cluster_id: str
    after: int
    until: int
    owners: dict[str, float]


def recluster(
    user_id: str,
    old: Mapping[str, Collection[Item]],
    new: Sequence[Collection[Item]],
    fresh_ids: Sequence[str],
    effective_at: int,
    *,
    taken: Collection[str] = (),
) -> tuple[list[str], Reclustering | None]:
    """Ids of a user's new clusters, and where the old ones went.

    A new cluster keeps the id of the old one with which it shares more than half of all items that either has (Jaccard index above 1/2):
    there is at most one, both ways. Another gets its fresh id; one that already means something else gets the time appended.

    Args:
        user_id: whose clusters.
        old: members of each old cluster; clusters do not overlap.
        new: members of each new cluster; clusters do not overlap.
        fresh_ids: for each new cluster the id that it gets unless it continues an old one (its medoid), all different.
        effective_at: events up to this time under an old id follow its members.
        taken: ids of the user's earlier clusters, which must not come back as something else.

    Returns: the ids, in the order of `new`, and what changed; None when nothing did.
    """
    home = {item: place for place, members in enumerate(new) for item in members} if old else {}
    kept: dict[int, str] = {}
    went: dict[str, Counter[int]] = {}
    for old_id in sorted(old):
        went[old_id] = Counter(home[item] for item in old[old_id] if item in home)
        for place, shared in went[old_id].items():
            if 2 * shared > len(old[old_id]) + len(new[place]) - shared:
                kept[place] = old_id
    known = {*old, *taken}
    ids = [kept[place] if place in kept else _unlike(fresh, known, fresh_ids, effective_at) for place, fresh in enumerate(fresh_ids)]
    moves = [
        Move(from_cluster=old_id, to_cluster=to, share=count / places.total())
        for old_id, places in went.items()
        for to, count in sorted((ids[place], count) for place, count in places.items())
        if not (count == places.total() and to == old_id)
    ]
    return ids, Reclustering(user_id=user_id, effective_at=effective_at, moves=moves) if moves else None


def owners_now(cluster_id: str, at: int, history: Sequence[Reclustering]) -> dict[str, float]:
    """Where the term of an event belongs now: the shares of each cluster, which sum to 1.

    By the event's own time, so that it does not matter when it arrives: a reclustering moves events up to its `effective_at`, and later
    ones only when their cluster has not survived it (a decision from before, with feedback from after).

    Args:
        cluster_id: that the event carries.
        at: when it happened.
        history: all reclusterings of the event's user.
    """
    shares = {cluster_id: 1.0}
    for change in sorted(history, key=_effective_at):
        targets = _targets(change)
        moved: dict[str, float] = {}
        for source, part in shares.items():
            to = targets.get(source)
            if to is None or (at > change.effective_at and source in to):
                to = {source: 1.0}
            for target, share in to.items():
                moved[target] = moved.get(target, 0.0) + part * share
        shares = moved
    return shares


def owner_intervals(history: Sequence[Reclustering]) -> list[OwnerInterval]:
    """`owners_now` of every event that a user can have, at once: for each cluster that ever changed, by id, its intervals of time in order.

    From the last reclustering back to the first, so that each is looked at once.
    """
    found: dict[str, _Intervals] = {}
    for change in sorted(history, key=_effective_at, reverse=True):
        intervals = {}
        for source, to in _targets(change).items():
            intervals[source] = _weighted_owners(to, found)
            if source in to:  # it survives: later events stay, and go on from there
                early = (change.effective_at, intervals[source][0][1])
                intervals[source] = [early, *(interval for interval in _intervals_of(source, found) if interval[0] > change.effective_at)]
        found |= intervals
    return [
        OwnerInterval(source, after, until, shares)
        for source in sorted(found)
        for after, (until, shares) in zip([_BEFORE_ALL, *(until for until, _ in found[source])], found[source], strict=False)
        if shares != {source: 1.0}
    ]


def _unlike(fresh: str, known: set[str], fresh_ids: Sequence[str], effective_at: int) -> str:
    if fresh not in known:
        return fresh
    unlike = f"{fresh}~{effective_at}"
    while unlike in known or unlike in fresh_ids:
        unlike += "~"
    return unlike


def _effective_at(change: Reclustering) -> int:
    return change.effective_at


def _targets(change: Reclustering) -> dict[str, dict[str, float]]:
    targets: dict[str, dict[str, float]] = {}
    for move in change.moves:
        targets.setdefault(move.from_cluster, {})[move.to_cluster] = move.share
    return targets


def _intervals_of(cluster_id: str, found: Mapping[str, _Intervals]) -> _Intervals:
    return found.get(cluster_id, [(_ALWAYS, {cluster_id: 1.0})])


def _weighted_owners(to: Mapping[str, float], found: Mapping[str, _Intervals]) -> _Intervals:
    """The targets' own intervals, their owners weighed by the targets' shares, cut at the times at which any of them changes."""
    parts = [(share, _intervals_of(target, found)) for target, share in to.items()]
    blended: _Intervals = []
    for until in sorted({until for _, intervals in parts for until, _ in intervals}):
        shares: dict[str, float] = {}
        for share, intervals in parts:
            for target, part in next(owners for end, owners in intervals if end >= until).items():
                shares[target] = shares.get(target, 0.0) + share * part
        blended.append((until, shares))
    return blended
