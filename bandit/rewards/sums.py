"""A user's decayed sums as the stream keeps them: the same numbers as the batch fold's, one event at a time.

S(T) = sum of r_e * 2^(-(T - t_e) / h): an event adds its own term, moving T is one multiplication, and a reclustering is a linear map.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from bandit.rewards.decay import HalfLives
from bandit.rewards.lineage import Reclustering, credit
from bandit.rewards.scheme import RewardScheme
from bandit.types import ClusterRewards, Floats, Ints, Sums

DRAW = -1  # code of a drawn query, beside those of the action types
MAX_CLUSTERS = 1000  # of one user; a clustering makes a tenth of that
_IMPRESSIONS_SESSION, _REWARD_SESSION, _IMPRESSIONS_LONG, _REWARD_LONG, _DRAWS_SESSION, _ACTIONS = range(6)  # columns
_LINEAGE_KEPT = 30  # reclusterings of a user, for events that come late
_FADED = 1e-6  # impressions and draws: less is nothing, once there are many clusters


class Term(NamedTuple):
    """One thing to add: an action of a cluster (by its code in `Folding.codes`) or a draw, at a time in UTC microseconds."""

    cluster_id: str
    code: int
    at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Folding:
    """How events become sums."""

    scheme: RewardScheme
    half_lives: HalfLives

    @property
    def codes(self) -> dict[str, int]:
        """Code of each action type: its place in `scheme.action_types`."""
        return {action: code for code, action in enumerate(self.scheme.action_types)}

    @property
    def fingerprint(self) -> str:
        """Equal for foldings that give the same sums."""
        return msgspec.json.encode(
            {"weights": dict(self.scheme.weights), "session": self.half_lives.session, "long": self.half_lives.long}
        ).decode()


class _Stored(msgspec.Struct, frozen=True, array_like=True):
    as_of: int
    cluster_ids: list[str]
    values: bytes  # float64 little-endian, (clusters, columns)
    last_impression_at: bytes  # int64 little-endian, (clusters,)
    lineage: list[Reclustering]


_encoder, _decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(_Stored)


class UserSums:
    """Sums of one user at reference time `as_of`, the latest time that was added. Mutable: it lives for one batch."""

    __slots__ = ("_folding", "_rows", "_weights", "as_of", "last_impression_at", "lineage", "values")

    def __init__(self, folding: Folding, stored: bytes | None = None) -> None:
        """Empty, or as `to_bytes` left it."""
        self._folding = folding
        self._weights = [folding.scheme.weights.get(action, 0.0) for action in folding.scheme.action_types]
        if stored is None:
            self.as_of = 0
            self._rows: dict[str, int] = {}
            self.values: Floats = np.zeros((0, _ACTIONS + len(self._weights)))
            self.last_impression_at: Ints = np.zeros(0, np.int64)
            self.lineage: list[Reclustering] = []
            return
        held = _decoder.decode(stored)
        self.as_of, self.lineage = held.as_of, held.lineage
        self._rows = {cluster_id: row for row, cluster_id in enumerate(held.cluster_ids)}
        self.values = np.frombuffer(held.values, "<f8").reshape(len(self._rows), _ACTIONS + len(self._weights)).copy()
        self.last_impression_at = np.frombuffer(held.last_impression_at, "<i8").copy()

    @property
    def cluster_ids(self) -> list[str]:
        """Ids in order of the rows."""
        return list(self._rows)

    def add(self, terms: Iterable[Term]) -> None:
        """Add events and draws, in any order, of any time."""
        terms = list(terms)
        if not terms:  # a decision without queries
            return
        self.move(max(term.at for term in terms))
        session, long = float(self._folding.half_lives.session), float(self._folding.half_lives.long)
        for cluster_id, code, at in terms:
            age = at - self.as_of
            for credited, share in credit(cluster_id, at, self.lineage).items() if self.lineage else ((cluster_id, 1.0),):
                row = self._rows.get(credited, -1)
                if row < 0:
                    row = self._row(credited)
                values, now = self.values, share * 2.0 ** (age / session)
                if code == DRAW:
                    values[row, _DRAWS_SESSION] += now
                    continue
                lasting, weight = share * 2.0 ** (age / long), self._weights[code]
                values[row, _ACTIONS + code] += lasting
                if code == 0:
                    values[row, _IMPRESSIONS_SESSION] += now
                    values[row, _IMPRESSIONS_LONG] += lasting
                    self.last_impression_at[row] = max(self.last_impression_at[row], at)
                elif weight:
                    values[row, _REWARD_SESSION] += weight * now
                    values[row, _REWARD_LONG] += weight * lasting

    def move(self, to: int) -> None:
        """Move the reference time forward; never back."""
        if to <= self.as_of:
            return
        if len(self._rows):
            session = 2.0 ** ((self.as_of - to) / self._folding.half_lives.session)
            factors = np.full(self.values.shape[1], 2.0 ** ((self.as_of - to) / self._folding.half_lives.long))
            factors[[_IMPRESSIONS_SESSION, _REWARD_SESSION, _DRAWS_SESSION]] = session
            self.values *= factors
        self.as_of = to

    def recluster(self, change: Reclustering) -> None:
        """Hand the sums of each changed cluster to those that its members moved to; the same change again changes nothing."""
        if self.lineage and change.effective_at <= self.lineage[-1].effective_at:
            return
        before = {move.from_cluster: self._rows[move.from_cluster] for move in change.moves if move.from_cluster in self._rows}
        values, last = self.values.copy(), self.last_impression_at.copy()
        for row in before.values():
            self.values[row] = 0.0
            self.last_impression_at[row] = 0
        kept = set()
        for move in change.moves:
            if move.from_cluster in before:
                source, row = before[move.from_cluster], self._row(move.to_cluster)
                self.values[row] += move.share * values[source]
                self.last_impression_at[row] = max(self.last_impression_at[row], last[source])
                kept.add(move.to_cluster)
        self._keep([cluster_id for cluster_id in self._rows if cluster_id in kept or cluster_id not in before])
        self.lineage = [*self.lineage, change][-_LINEAGE_KEPT:]

    def rewards(self) -> ClusterRewards:
        """The sums as serving reads them."""
        return ClusterRewards(
            cluster_ids=self.cluster_ids, as_of=self.as_of, sums=Sums(self.columns), last_impression_at=self.last_impression_at
        )

    @property
    def columns(self) -> Floats:
        """The five sums, (5, clusters), in the order of `Sums`."""
        return np.ascontiguousarray(self.values[:, :_ACTIONS].T)

    @property
    def action_sums(self) -> Floats:
        """Decayed counts by action type, long half-life, (clusters, action types)."""
        return self.values[:, _ACTIONS:]

    def to_bytes(self) -> bytes:
        """MessagePack; clusters that have faded to nothing are left out once there are many."""
        if len(self._rows) > MAX_CLUSTERS // 5:
            alive: npt.NDArray[np.bool_] = np.max(self.values[:, _DRAWS_SESSION:], axis=1) > _FADED
            self._keep([cluster_id for cluster_id, row in self._rows.items() if alive[row]])
        return _encoder.encode(
            _Stored(
                self.as_of,
                self.cluster_ids,
                self.values.astype("<f8").tobytes(),
                self.last_impression_at.astype("<i8").tobytes(),
                self.lineage,
            )
        )

    @classmethod
    def of(cls, folding: Folding, rewards: ClusterRewards, action_sums: Floats, lineage: list[Reclustering]) -> UserSums:
        """Sums that the batch fold made."""
        made = cls(folding)
        made.as_of, made.lineage = rewards.as_of, lineage[-_LINEAGE_KEPT:]
        made._rows = {cluster_id: row for row, cluster_id in enumerate(rewards.cluster_ids)}
        made.values = np.column_stack((*rewards.sums.values, action_sums)).astype(np.float64)
        made.last_impression_at = np.asarray(rewards.last_impression_at, np.int64).copy()
        return made

    def _row(self, cluster_id: str) -> int:
        row = self._rows.get(cluster_id)
        if row is None:
            row = self._rows[cluster_id] = len(self._rows)
            self.values = np.concatenate((self.values, np.zeros((1, self.values.shape[1]))))
            self.last_impression_at = np.append(self.last_impression_at, 0)
        return row

    def _keep(self, cluster_ids: list[str]) -> None:
        if len(cluster_ids) == len(self._rows):
            return
        rows = [self._rows[cluster_id] for cluster_id in cluster_ids]
        self.values, self.last_impression_at = self.values[rows], self.last_impression_at[rows]
        self._rows = {cluster_id: row for row, cluster_id in enumerate(cluster_ids)}
