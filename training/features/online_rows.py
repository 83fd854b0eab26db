"""The user's row of `cluster_rewards` in Feast's online store, overwritten from the sums.

Feast's own write reads the row's time, compares, and writes in a second round trip: a process that froze in between would put an old row
over a newer one, and a late event, which does not move the row's time, would not be written at all. So keys, field names and values are
Feast's, and one small Lua step writes the row unless a later commit already did. `tests/training/features/test_online_rows.py` reads the
rows back through Feast.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

import numpy as np
import redis
from google.protobuf.timestamp_pb2 import Timestamp

with warnings.catch_warnings():  # importing Feast switches on the DeprecationWarnings of the whole process
    from feast import FeatureStore
    from feast.infra.online_stores.helpers import _mmh3, _redis_key
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import DoubleList, StringList, Value

from bandit.rewards.sums import UserSums
from bandit.types import SUM_NAMES, ClusterRewards, Sums
from feature_repo import names

_WRITE = """
local written = redis.call('HGET', KEYS[1], ARGV[1])
if written and written > ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV))
return 1
"""
_KEYS_KEPT = 100_000  # of users; the key of one takes Feast as long as the rest of its row
_FIELDS = [column.name for column in names.served(names.CLUSTER_REWARDS)]
_FROM_NO_SNAPSHOT = Value(int64_val=0).SerializeToString()


class RewardRows:
    """Writes rows as Feast does, and reads them back."""

    def __init__(self, client: redis.Redis, store: FeatureStore) -> None:
        """`client` and the store's online store must be the same Redis."""
        config, view = store.config, names.CLUSTER_REWARDS
        self._project, self._version = config.project, config.entity_key_serialization_version
        self._lifetime = config.online_store.key_ttl_seconds
        self._client = client
        self._time = f"_ts:{view}".encode()
        self._field: dict[str, bytes] = {name: _mmh3(f"{view}:{name}") for name in names.columns(view)}
        self._script = ""
        self.key = lru_cache(_KEYS_KEPT)(self._key)

    def prepare(self) -> None:
        """Load the script; to be done again when Redis was started anew."""
        self._script = self._client.script_load(_WRITE)

    def _key(self, user_id: str) -> bytes:
        """Redis key of the user's hash, which all views of the entity share."""
        entity = EntityKey(join_keys=[names.JOIN_KEY], entity_values=[Value(string_val=user_id)])
        return bytes(_redis_key(self._project, entity, entity_key_serialization_version=self._version))

    def write(self, pipeline: Any, user_id: str, sums: UserSums, version: str) -> None:  # noqa: ANN401 -- redis-py's pipelines are untyped
        """Put the write of a row into the pipeline; `version` must grow with each commit."""
        key = self.key(user_id)
        pipeline.evalsha(self._script, 1, key, names.ROW_VERSION_FIELD, version, *self.arguments(sums))
        if self._lifetime:
            pipeline.expire(key, self._lifetime)

    def arguments(self, sums: UserSums) -> list[bytes]:
        """Fields and values of a row, in turn."""
        field, ids = self._field, sums.cluster_ids
        seconds, microseconds = divmod(sums.as_of, 1_000_000)
        arguments = [self._time, Timestamp(seconds=seconds, nanos=microseconds * 1000).SerializeToString()]
        for name, values in zip(SUM_NAMES, sums.values.T, strict=True):
            arguments += field[name], _doubles(values.tobytes())
        arguments += field[names.AS_OF], Value(int64_val=sums.as_of).SerializeToString()
        arguments += field[names.REWARDS_GENERATION], _FROM_NO_SNAPSHOT
        arguments += field[names.REWARDED_CLUSTERS], Value(string_list_val=StringList(val=ids)).SerializeToString()
        return arguments

    def read(self, user_id: str) -> ClusterRewards | None:
        """The row as it stands in the online store, None when there is none."""
        raw = self._client.hmget(self.key(user_id), [self._field[name] for name in _FIELDS])
        if raw[_FIELDS.index(names.REWARDED_CLUSTERS)] is None:
            return None
        held: dict[str, Any] = {}
        for name, value in zip(_FIELDS, raw, strict=True):
            decoded = Value.FromString(value)
            kind = decoded.WhichOneof("val")
            held[name] = getattr(decoded, kind) if name == names.AS_OF else list(getattr(decoded, kind).val)
        return ClusterRewards(
            cluster_ids=held[names.REWARDED_CLUSTERS],
            as_of=held[names.AS_OF],
            sums=Sums(np.array([held[name] for name in SUM_NAMES], np.float64)),
        )


def _doubles(packed: bytes) -> bytes:
    """`Value(double_list_val=...)` on the wire: the doubles' own bytes, little-endian, behind tags and lengths."""
    return _head(len(packed)) + packed


@lru_cache(_KEYS_KEPT)
def _head(length: int) -> bytes:
    """What stands before that many bytes of packed doubles."""
    whole: bytes = Value(double_list_val=DoubleList(val=[0.0] * (length // 8))).SerializeToString()
    return whole[: len(whole) - length]
