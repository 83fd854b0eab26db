"""The decision log: one Redis stream per partition of users, written before the selection is returned."""

from __future__ import annotations

import msgspec
import redis

from bandit.records import Decision
from feature_repo import names
from feature_repo.partitions import partition
from serving.connection import away

_encoder = msgspec.msgpack.Encoder()


class DecisionLog:
    """Appends decisions. `training` moves them to Parquet and trims the streams; nothing is trimmed by length."""

    def __init__(self, client: redis.Redis, url: str) -> None:
        """Write through this client; `url` is for messages."""
        self._client, self._url = client, url

    def append(self, decision: Decision) -> None:
        """Log one decision: *accepted* when this returns, *durable* as Redis' own `appendfsync` makes it.

        Raises: DependencyAwayError; the decision may then be in the log or not.
        """
        key = names.DECISIONS_KEY % partition(decision.user_id)
        try:
            self._client.xadd(key, {names.RECORD_FIELD: _encoder.encode(decision)})
        except redis.RedisError as error:
            raise away(self._url, error) from error
