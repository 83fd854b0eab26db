"""Reading both views of a user from Feast's online store, in one round trip. The one file of serving that knows Feast."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import redis
from google.protobuf.message import DecodeError
from redis.backoff import NoBackoff
from redis.retry import Retry

with warnings.catch_warnings():  # importing Feast switches on the DeprecationWarnings of the whole process
    from feast import FeatureStore
    from feast.errors import FeastObjectNotFoundException
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

from bandit.errors import FeatureStoreError, InvalidValueError
from bandit.types import ClusterRewards, Floats, Ints, Profile
from feature_repo import names
from feature_repo.store import open_store
from serving.connection import away

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


_REGISTRY_ATTEMPTS, _REGISTRY_PAUSE = 4, 0.1  # seconds


class FeatureReader:
    """Reads a user's clusters and their evidence.

    Feast's `get_online_features` and even `provider.online_read` take a round trip per view and assemble protobuf responses; the store
    below them reads any fields of the user's hash at once. Those methods are Feast's own, not public: the version is pinned, and
    `tests/serving/test_features.py` holds this reader to `get_online_features`.
    """

    def __init__(self, folder: Path, redis_url: str, *, timeout: float) -> None:
        """Open the store of `folder`; each read may take `timeout` seconds.

        Raises: FeatureStoreError when the definitions were never applied, DependencyAwayError when Redis does not answer.
        """
        self._url = redis_url
        store = _opened(folder, redis_url, timeout)
        self._config = store.config
        self._online: Any = store._get_provider().online_store  # noqa: SLF001 -- see the class
        self._fields: list[Any] = []
        for view, features in ((names.USER_CLUSTERS, _CLUSTERS), (names.CLUSTER_REWARDS, _REWARDS)):
            self._fields += self._online._generate_hset_keys_for_features(store.get_feature_view(view), list(features))[1][:-1]  # noqa: SLF001
        client = self._online._get_client(self._config.online_store)  # noqa: SLF001
        client.set_retry(Retry(NoBackoff(), 0))
        try:
            client.ping()
        except redis.RedisError as error:
            raise away(redis_url, error) from error

    def read(self, user_id: str) -> tuple[Profile | None, ClusterRewards | None]:
        """Profile and rewards of a user; None for a view that has no row of the user.

        Raises: DependencyAwayError, FeatureStoreError for a row whose arrays do not fit each other.
        """
        key = EntityKey(join_keys=[names.JOIN_KEY], entity_values=[Value(string_val=user_id)])
        keys = self._online._generate_redis_keys_for_entities(self._config, [key])  # noqa: SLF001
        try:
            (row,) = self._online._read_hash_fields(self._config, [(keys[0], self._fields)])  # noqa: SLF001
        except redis.RedisError as error:
            raise away(self._url, error) from error
        clusters, rewards = row[: len(_CLUSTERS)], row[len(_CLUSTERS) :]
        try:
            return (
                _profile([_decoded(value) for value in clusters]) if clusters[0] is not None else None,
                _rewards([_decoded(value) for value in rewards]) if rewards[0] is not None else None,
            )
        except (InvalidValueError, TypeError, ValueError) as error:
            raise FeatureStoreError(f"row of user {user_id!r}: {error}") from error


def _opened(folder: Path, redis_url: str, timeout: float) -> FeatureStore:
    """The store, with both views applied. Feast does not replace its registry file at once: a writer's half is read again."""
    for attempt in range(_REGISTRY_ATTEMPTS):
        try:
            store = open_store(folder, redis_url, timeout=timeout, online_only=True)
            for view in (names.USER_CLUSTERS, names.CLUSTER_REWARDS):
                store.get_feature_view(view)
        except (FeastObjectNotFoundException, DecodeError) as error:
            if attempt == _REGISTRY_ATTEMPTS - 1:
                raise FeatureStoreError(f"{error}: run `feast apply` in {folder}") from error
            time.sleep(_REGISTRY_PAUSE)
        else:
            return store
    raise AssertionError("unreachable")


def _decoded(raw: bytes) -> Any:  # noqa: ANN401 -- what a protobuf value holds is known to its reader only
    value = Value.FromString(raw)
    kind = value.WhichOneof("val")
    if kind is None:
        return []
    held = getattr(value, kind)
    return held if isinstance(held, int) else held.val


def _profile(row: list[Any]) -> Profile:
    ids, topics, topic_history, item_counts, action_types, counts, importance, last, items, weights, offsets = row
    return Profile(
        cluster_ids=list(ids),
        topic_ids=_ints(topics),
        topic_history=_floats(topic_history),
        item_counts=_ints(item_counts),
        action_types=list(action_types),
        action_counts=_floats(counts).reshape(len(ids), -1) if len(ids) else np.zeros((0, len(action_types))),
        importance=_floats(importance),
        last_action_at=_ints(last),
        query_items=list(items),
        query_weights=_floats(weights),
        query_offsets=_ints(offsets) if len(offsets) else np.zeros(1, np.int64),
    )


def _rewards(row: list[Any]) -> ClusterRewards:
    ids, as_of, *sums, last = row
    arrays = [_floats(values) for values in sums]
    if any(len(values) != len(ids) for values in (*arrays, last)):
        raise InvalidValueError(names.CLUSTER_REWARDS, expected=f"{len(ids)} numbers a sum", received=[*map(len, (*arrays, last))])
    impressions_session, reward_session, impressions_long, reward_long, draws = arrays
    return ClusterRewards(
        cluster_ids=list(ids),
        as_of=as_of,
        impressions_session=impressions_session,
        reward_session=reward_session,
        impressions_long=impressions_long,
        reward_long=reward_long,
        draws_session=draws,
        last_impression_at=_ints(last),
    )


def _floats(values: Any) -> Floats:  # noqa: ANN401
    return np.fromiter(values, np.float64, len(values))


def _ints(values: Any) -> Ints:  # noqa: ANN401
    return np.fromiter(values, np.int64, len(values))
