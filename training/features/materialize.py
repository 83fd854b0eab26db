"""Materialize: rows of the snapshots that are newer, by generation, than the rows in the online store.

Feast's own `materialize` believes an interval of time: a row that was written later for an earlier time, or an online store that lost its
data, goes unnoticed. So the rows are compared one by one, and written through Feast's provider in Feast's format; `feast materialize`
keeps working beside this step, and what it notes in the registry changes nothing here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import redis

with warnings.catch_warnings():  # importing Feast switches on the DeprecationWarnings of the whole process
    from feast import FeatureStore
    from feast.infra.online_stores.helpers import _mmh3, _redis_key
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value
    from feast.utils import _convert_arrow_to_proto

from bandit.settings.load import Settings
from feature_repo import names
from feature_repo.connection import connect, translated
from training.features.feature_store import apply
from training.features.snapshots import Latest, adopt_single_file, generation_column, latest_rows
from training.logs.schemas import CLUSTER_REWARDS, USER_CLUSTERS

_COMPARED = 5_000  # rows whose generations one pipeline reads
_WRITTEN = 500  # rows that one call of Feast converts and writes: it bounds memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Materialized:
    """Rows written of each view; rows that were up to date; `missing`: rows of users whom the online store did not know.

    older: what is on disk is older than what is online, for so many users; their rows stay.
    """

    written: dict[str, int] = field(default_factory=dict)
    unchanged: dict[str, int] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    older: dict[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows written, of all views."""
        return sum(self.written.values())


def materialize(
    settings: Settings, *, until: int, everything: bool = False, progress: Callable[[int, int], None] = lambda done, total: None
) -> Materialized:
    """Bring the online store to the newest row of every user up to `until` (UTC microseconds).

    With `stream.enabled` the rows of `cluster_rewards` are left to the stream: a view has one writer.

    Args:
        settings: of the deployment.
        until: rows of a later time stay on disk.
        everything: write each row whatever is online.
        progress: called with rows looked at and rows in all.

    Raises: DependencyUnavailableError; the rows written so far stay, and the next run writes what is left.
    """
    client = connect(settings.redis_url)  # before Feast does: it would try again for seconds, and not say which server is unavailable
    adopt_single_file(settings.feature_repo_path / names.USER_CLUSTERS_PATH)
    store = apply(settings)
    store.config.online_store.skip_dedup = True  # Feast's guard compares times; ours has compared generations
    result = Materialized()
    views = {view: where for view, where in _VIEWS.items() if not (view == names.CLUSTER_REWARDS and settings.stream.enabled)}
    repository = settings.feature_repo_path
    latest = {view: latest_rows(repository / path, generation_column(schema), until=until) for view, (path, schema) in views.items()}
    total, done = sum(len(rows.users) for rows in latest.values()), 0
    for view, rows in latest.items():
        schema = views[view][1]
        online = _OnlineView(store, client, view, generation_column(schema))
        with translated(settings.redis_url):
            there = online.generations(rows.users)
            newer = (rows.generation > there) | (rows.generation == _UNNUMBERED) | everything
            for batch in _batches(rows, newer, online.columns, schema):
                online.write(batch)
                done += batch.num_rows
                progress(done, total)
        done += int((~newer).sum())
        result.written[view] = int(newer.sum())
        result.unchanged[view] = int(((rows.generation == there) & ~newer).sum())
        result.missing[view] = int((there == _MISSING).sum())
        result.older[view] = int(((rows.generation < there) & ~newer).sum())
    return result


_VIEWS = {  # folder and schema of each view's snapshots
    names.USER_CLUSTERS: (names.USER_CLUSTERS_PATH, USER_CLUSTERS),
    names.CLUSTER_REWARDS: (names.CLUSTER_REWARDS_PATH, CLUSTER_REWARDS),
}
_UNNUMBERED = 0  # generation of rows that another program wrote: nothing tells whether they are online, so they are written each time
_MISSING = -1  # generation of a row that is not online; a row that another writer left without one counts so too


class _OnlineView:
    """Rows of one view in the online store."""

    def __init__(self, store: FeatureStore, client: redis.Redis, view: str, generation: str) -> None:
        self._store, self._client = store, client
        self._view = store.get_feature_view(view)
        self._field = _mmh3(f"{view}:{generation}")
        self.columns = [names.JOIN_KEY, *(feature.name for feature in self._view.features), names.TIMESTAMP]

    def generations(self, users: pa.Array) -> npt.NDArray[np.int64]:
        """Generation of each user's row, (users,); `_MISSING` without a row."""
        result = np.full(len(users), _MISSING, np.int64)
        for start in range(0, len(users), _COMPARED):
            pipeline = self._client.pipeline(transaction=False)
            for user in users.slice(start, _COMPARED).to_pylist():
                pipeline.hget(self._key(user), self._field)
            for number, raw in enumerate(pipeline.execute(), start):
                if raw is not None:
                    result[number] = Value.FromString(raw).int64_val
        return result

    def write(self, batch: pa.RecordBatch) -> None:
        """Write rows as Feast does."""
        keys = {entity.name: entity.dtype.to_value_type() for entity in self._view.entity_columns}
        rows: Any = _convert_arrow_to_proto(batch, self._view, keys)
        self._store._get_provider().online_write_batch(self._store.config, self._view, rows, None)  # noqa: SLF001 -- Feast's abstract provider

    def _key(self, user_id: str) -> bytes:
        entity = EntityKey(join_keys=[names.JOIN_KEY], entity_values=[Value(string_val=user_id)])
        version = self._store.config.entity_key_serialization_version
        return bytes(_redis_key(self._store.config.project, entity, entity_key_serialization_version=version))


def _batches(latest: Latest, chosen: npt.NDArray[np.bool_], columns: list[str], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The chosen rows, some hundreds at a time, file after file; a column that an older file lacks is null."""
    for number, file in enumerate(latest.files):
        wanted = np.sort(latest.row[chosen & (latest.file == number)])
        if len(wanted):
            yield from _rows_of(file, wanted, columns, schema)


def _rows_of(file: Path, wanted: npt.NDArray[np.int64], columns: list[str], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(file) as source:
        there = [column for column in columns if column in source.schema_arrow.names]
        start = 0
        for record in source.iter_batches(batch_size=_WRITTEN, columns=there):
            rows = wanted[(wanted >= start) & (wanted < start + record.num_rows)] - start
            start += record.num_rows
            if len(rows):
                batch = record.take(pa.array(rows))
                for column in set(columns) - set(there):
                    batch = batch.append_column(column, pa.nulls(len(rows), schema.field(column).type))
                yield batch
