"""Reading both views of a user from Feast's online store, in one command."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import hiredis
import numpy as np
from google.protobuf.message import DecodeError

from bandit.errors import FeatureStoreError, InvalidValueError
from bandit.types import ClusterRewards, Profile, Sums
from feature_repo import names
from feature_repo.connection import connect
from serving.features.feast_format import ReadCommand, doubles, field_name, integer, integers, lazy_strings, project_of, strings
from serving.features.last_seen import Row
from serving.redis_io.address import Address
from serving.redis_io.breaker import CircuitBreaker
from serving.redis_io.unavailable import Unavailable
from serving.redis_io.wire import Wire

_CLUSTERS = [
    names.CLUSTER_IDS,
    names.TOPIC_IDS,
    names.TOPIC_HISTORY,
    names.ITEM_COUNTS,
    names.ACTION_TYPES,
    names.ACTION_COUNTS,
    names.IMPORTANCE,
    names.LAST_ACTION_AT,
    names.QUERY_ITEMS,
    names.QUERY_WEIGHTS,
    names.QUERY_OFFSETS,
]
_REWARDS = [
    names.CLUSTER_IDS,
    names.AS_OF,
    names.IMPRESSIONS_SESSION,
    names.REWARD_SESSION,
    names.IMPRESSIONS_LONG,
    names.REWARD_LONG,
    names.DRAWS_SESSION,
    names.LAST_IMPRESSION_AT,
]


class FeatureReader:
    """A user's clusters and their evidence, as Feast stored them.

    Feast's `get_online_features` and even `provider.online_read` take a round trip per view and assemble protobuf responses; all fields
    of a user lie in one hash, which one HMGET reads.
    """

    def __init__(self, folder: Path, redis_url: str, *, timeout: float) -> None:
        """Open the store of `folder`; each `read` may take `timeout` seconds.

        Raises: FeatureStoreError when the definitions were never applied, DependencyUnavailableError when Redis does not answer.
        """
        fields = [field_name(names.USER_CLUSTERS, feature) for feature in _CLUSTERS]
        fields += [field_name(names.CLUSTER_REWARDS, feature) for feature in _REWARDS]
        self._command = ReadCommand(project_of(folder.resolve(), (names.USER_CLUSTERS, names.CLUSTER_REWARDS)), fields)
        self._timeout = timeout
        self._wire = Wire(Address.of(redis_url), CircuitBreaker(failures=1, pause=0.0), connections=1, patience=timeout)
        connect(redis_url, timeout=timeout)

    def read(self, user_id: str) -> Row:
        """Profile and rewards of a user; None for a view that has no row of the user.

        Raises: DependencyUnavailableError, FeatureStoreError for a row whose arrays do not fit each other.
        """
        row = self.row(user_id, self._wire.exchange(self.command(user_id), time.monotonic() + self._timeout))
        if isinstance(row, Unavailable):
            raise row.error
        return row

    def command(self, user_id: str) -> bytes:
        """The packed command that reads a user."""
        return self._command.of(user_id)

    def row(self, user_id: str, reply: Any) -> Row | Unavailable:  # noqa: ANN401 -- Redis' answer
        """What the reply to `command` says; Unavailable for a refusal, and for a row whose arrays do not fit each other."""
        if isinstance(reply, Unavailable):
            return reply
        if isinstance(reply, hiredis.ReplyError):
            return Unavailable(FeatureStoreError(f"row of user {user_id!r}: {reply}"))
        try:
            clusters, rewards = reply[: len(_CLUSTERS)], reply[len(_CLUSTERS) :]
            return (
                _profile(clusters) if clusters[0] is not None else None,
                _rewards(rewards) if rewards[0] is not None else None,
            )
        except (DecodeError, InvalidValueError, TypeError, ValueError) as error:
            return Unavailable(FeatureStoreError(f"row of user {user_id!r}: {error}"))

    def close(self) -> None:
        """Close the connection of `read`."""
        self._wire.close()


def _profile(row: list[bytes]) -> Profile:
    ids, topics, topic_history, item_counts, action_types, counts, importance, last, items, weights, offsets = row
    cluster_ids, types, actions = strings(ids), strings(action_types), doubles(counts)
    return Profile(
        cluster_ids=cluster_ids,
        topic_ids=integers(topics),
        topic_history=doubles(topic_history),
        item_counts=integers(item_counts),
        action_types=types,
        action_counts=actions.reshape(len(cluster_ids), -1) if cluster_ids else np.zeros((0, len(types))),
        importance=doubles(importance),
        last_action_at=integers(last),
        query_items=lazy_strings(items),  # some hundreds: strings are made of those that are drawn
        query_weights=doubles(weights),
        query_offsets=integers(offsets) if cluster_ids else np.zeros(1, np.int64),
    )


def _rewards(row: list[bytes]) -> ClusterRewards:
    raw_ids, as_of, *sums, raw_last = row
    ids, last = strings(raw_ids), integers(raw_last)
    arrays = [doubles(values) for values in sums]
    if any(len(values) != len(ids) for values in (*arrays, last)):
        raise InvalidValueError(names.CLUSTER_REWARDS, expected=f"{len(ids)} numbers a sum", received=[*map(len, (*arrays, last))])
    return ClusterRewards(cluster_ids=ids, as_of=integer(as_of), sums=Sums(np.array(arrays)), last_impression_at=last)
