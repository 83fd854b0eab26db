"""A user's decayed sums as the stream keeps them: the same numbers as the batch fold's, one event at a time.

S(T) = sum of r_e * 2^(-(T - t_e) / h): an event adds its own term, moving T is one multiplication, and a reclustering is a linear map.
The batch fold (`training/features/decayed_sums.py`) and the stream derive their sums from one table, `SUMS`, and one `SumsDefinition`.
Source: the aggregators of Chronon (prepare, update, merge, finalize), where the batch equals the stream by construction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from bandit.rewards.decay import HalfLives
from bandit.rewards.lineage import Reclustering, owners_now
from bandit.rewards.scheme import IMPRESSION, RewardScheme
from bandit.types import SUMS, ClusterRewards, Floats, Sums

DRAWN = "\N{SYMBOL FOR NULL}draw"  # of a drawn query, as if it were an action; no action type of the settings can bear this name
DRAW = -1  # its code, after those of the action types
MAX_CLUSTERS = 1000  # of one user; a clustering makes a tenth of that
_LINEAGE_KEPT = 30  # reclusterings of a user, for events that come late
_FADED = 1e-6  # a cluster with smaller sums is nothing, once there are many clusters


class Term(NamedTuple):
    """One thing to add: an action of a cluster (by its code in `SumsDefinition.action_codes`) or a draw, at a time in UTC microseconds."""

    cluster_id: str
    code: int
    at: int


@dataclass(frozen=True, kw_only=True)
class SumsDefinition:
    """How events become sums."""

    scheme: RewardScheme
    half_lives: HalfLives

    @cached_property
    def action_codes(self) -> dict[str, int]:
        """Code of each action type: its position in `scheme.action_types`."""
        return {action: code for code, action in enumerate(self.scheme.action_types)}

    @property
    def amounts(self) -> Mapping[str, Mapping[str, float]]:
        """What each action adds, by `Sum.of`; an action that is not named adds nothing."""
        return {"impressions": {IMPRESSION: 1.0}, "reward": self.scheme.weights, "draws": {DRAWN: 1.0}}

    @cached_property
    def additions(self) -> list[list[tuple[int, bool, float]]]:
        """By code, the draw last: the sums that an action changes (by position in `SUMS`), whether by the long half-life, and how much."""
        amounts = self.amounts
        return [
            [
                (column, each.half_life == "long", amounts[each.of][action])
                for column, each in enumerate(SUMS)
                if amounts[each.of].get(action, 0.0)
            ]
            for action in (*self.scheme.action_types, DRAWN)
        ]

    @property
    def fingerprint(self) -> str:
        """Equal for definitions that give the same sums."""
        weights, half_lives = dict(self.scheme.weights), self.half_lives
        return msgspec.json.encode({"sums": SUMS, "weights": weights, "session": half_lives.session, "long": half_lives.long}).decode()


class _Stored(msgspec.Struct, frozen=True, array_like=True):
    as_of: int
    cluster_ids: list[str]
    values: bytes  # float64 little-endian, (clusters, sums)
    lineage: list[Reclustering]


_encoder, _decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(_Stored)


class UserSums:
    """Sums of one user at reference time `as_of`, the latest time that was added. Mutable: it lives for one batch.

    `values` has a row for each cluster, a column for each of `SUMS`.
    """

    __slots__ = ("_definition", "_rows", "as_of", "lineage", "values")

    def __init__(self, definition: SumsDefinition, stored: bytes | None = None) -> None:
        """Empty, or as `to_bytes` left it."""
        self._definition = definition
        if stored is None:
            self.as_of = 0
            self._rows: dict[str, int] = {}
            self.values: Floats = np.zeros((0, len(SUMS)))
            self.lineage: list[Reclustering] = []
            return
        state = _decoder.decode(stored)
        self.as_of, self.lineage = state.as_of, state.lineage
        self._rows = {cluster_id: row for row, cluster_id in enumerate(state.cluster_ids)}
        self.values = np.frombuffer(state.values, "<f8").reshape(len(self._rows), len(SUMS)).copy()

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
        additions, half_lives = self._definition.additions, self._definition.half_lives
        session, long = float(half_lives.session), float(half_lives.long)
        for cluster_id, code, at in terms:
            age = at - self.as_of
            faded = 2.0 ** (age / session), 2.0 ** (age / long)
            for owner, share in owners_now(cluster_id, at, self.lineage).items() if self.lineage else ((cluster_id, 1.0),):
                row = self._rows.get(owner, -1)
                if row < 0:
                    row = self._row(owner)
                for column, lasting, amount in additions[code]:
                    self.values[row, column] += amount * (share * faded[lasting])

    def move(self, to: int) -> None:
        """Move the reference time forward; never back."""
        if to <= self.as_of:
            return
        if len(self._rows):
            self.values *= self._definition.half_lives.factors(to - self.as_of)
        self.as_of = to

    def recluster(self, change: Reclustering) -> None:
        """Hand the sums of each changed cluster to those that its members moved to; the same change again changes nothing."""
        if self.lineage and change.effective_at <= self.lineage[-1].effective_at:
            return
        before = {move.from_cluster: self._rows[move.from_cluster] for move in change.moves if move.from_cluster in self._rows}
        values = self.values.copy()
        for row in before.values():
            self.values[row] = 0.0
        kept = set()
        for move in change.moves:
            if move.from_cluster in before:
                row = self._row(move.to_cluster)
                self.values[row] += move.share * values[before[move.from_cluster]]
                kept.add(move.to_cluster)
        self._keep([cluster_id for cluster_id in self._rows if cluster_id in kept or cluster_id not in before])
        self.lineage = [*self.lineage, change][-_LINEAGE_KEPT:]

    def rewards(self) -> ClusterRewards:
        """The sums as serving reads them."""
        return ClusterRewards(cluster_ids=self.cluster_ids, as_of=self.as_of, sums=Sums(self.values.T.copy()))

    def to_bytes(self) -> bytes:
        """MessagePack; clusters that have faded to nothing are left out once there are many."""
        if len(self._rows) > MAX_CLUSTERS // 5:
            alive: npt.NDArray[np.bool_] = np.abs(self.values).max(axis=1) > _FADED
            self._keep([cluster_id for cluster_id, row in self._rows.items() if alive[row]])
        return _encoder.encode(_Stored(self.as_of, self.cluster_ids, self.values.astype("<f8").tobytes(), self.lineage))

    @classmethod
    def of(cls, definition: SumsDefinition, rewards: ClusterRewards, lineage: list[Reclustering]) -> UserSums:
        """Sums that the batch fold made."""
        made = cls(definition)
        made.as_of, made.lineage = rewards.as_of, lineage[-_LINEAGE_KEPT:]
        made._rows = {cluster_id: row for row, cluster_id in enumerate(rewards.cluster_ids)}
        made.values = rewards.sums.values.T.copy()
        return made

    def _row(self, cluster_id: str) -> int:
        row = self._rows.get(cluster_id)
        if row is None:
            row = self._rows[cluster_id] = len(self._rows)
            self.values = np.concatenate((self.values, np.zeros((1, len(SUMS)))))
        return row

    def _keep(self, cluster_ids: list[str]) -> None:
        if len(cluster_ids) == len(self._rows):
            return
        self.values = self.values[[self._rows[cluster_id] for cluster_id in cluster_ids]]
        self._rows = {cluster_id: row for row, cluster_id in enumerate(cluster_ids)}
