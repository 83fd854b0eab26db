"""Reading both views of a user from Feast's online store, in one command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from redis.exceptions import ResponseError

from bandit.errors import FeatureStoreError, InvalidValueError
from bandit.types import SUM_NAMES, ClusterRewards, Profile, Sums
from feature_repo import names
from feature_repo.connection import connect, translated
from serving.features.feast_format import ReadCommand, doubles, field_name, integer, integers, lazy_strings, project_of, strings
from serving.features.last_seen import Row
from serving.redis_io.unavailable import Unavailable

_DECODERS: dict[str, Callable[[bytes], Any]] = {"int64": integer, "int64[]": integers, "float64[]": doubles, "string[]": strings}
_LAZY: dict[str, Callable[[bytes], Any]] = {names.QUERY_ITEMS: lazy_strings}  # some hundreds: strings are made of those that are drawn
_CLUSTERS, _REWARDS = (
    [(column.name, _LAZY.get(column.name, _DECODERS[column.type])) for column in names.served(view)]
    for view in (names.USER_CLUSTERS, names.CLUSTER_REWARDS)
)


class FeatureReader:
    """A user's clusters and their evidence, as Feast stored them.

    Feast's `get_online_features` and even `provider.online_read` take a round trip per view and assemble protobuf responses; all fields
    of a user lie in one hash, which one HMGET reads.
    """

    def __init__(self, folder: Path, redis_url: str, *, timeout: float) -> None:
        """Open the store of `folder`; each `read` may take `timeout` seconds.

        Raises: FeatureStoreError when the definitions were never applied, DependencyUnavailableError when Redis does not answer.
        """
        views = names.USER_CLUSTERS, names.CLUSTER_REWARDS
        self._fields = [field_name(view, column.name) for view in views for column in names.served(view)]
        self._command = ReadCommand(project_of(folder.resolve(), views), self._fields)
        self._url, self._client = redis_url, connect(redis_url, timeout=timeout)

    def read(self, user_id: str) -> Row:
        """Profile and rewards of a user; None for a view that has no row of the user.

        Raises: DependencyUnavailableError, FeatureStoreError for a row whose arrays do not fit each other.
        """
        with translated(self._url):
            row = self.row(user_id, self._client.hmget(self._command.key(user_id), self._fields))
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
        if isinstance(reply, ResponseError):
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
        """Close the connections of `read`."""
        self._client.close()


def _profile(row: list[bytes]) -> Profile:
    """The record's fields bear the names of the view's columns."""
    columns = {name: decode(raw) for (name, decode), raw in zip(_CLUSTERS, row, strict=True)}
    n, counts = len(columns[names.CLUSTER_IDS]), columns[names.ACTION_COUNTS]
    columns[names.ACTION_COUNTS] = counts.reshape(n, -1) if n else np.zeros((0, len(columns[names.ACTION_TYPES])))
    if not n:
        columns[names.QUERY_OFFSETS] = np.zeros(1, np.int64)
    return Profile(**columns)


def _rewards(row: list[bytes]) -> ClusterRewards:
    columns = {name: decode(raw) for (name, decode), raw in zip(_REWARDS, row, strict=True)}
    ids, arrays = columns[names.REWARDED_CLUSTERS], [columns[name] for name in SUM_NAMES]
    if any(len(values) != len(ids) for values in arrays):
        raise InvalidValueError(names.CLUSTER_REWARDS, expected=f"{len(ids)} numbers a sum", received=[*map(len, arrays)])
    return ClusterRewards(cluster_ids=ids, as_of=columns[names.AS_OF], sums=Sums(np.array(arrays)))
