"""The batch side's way into Feast: apply the definitions, materialize snapshots, read features as of a past time."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import ibis
import pyarrow.dataset as ds
import redis

with warnings.catch_warnings():  # importing Feast switches on the DeprecationWarnings of the whole process
    from feast import FeatureStore

from bandit.settings.load import Settings
from feature_repo import names
from feature_repo.connection import connect, translated
from feature_repo.definitions import objects
from feature_repo.store import open_store
from training.features.online_rows import RewardRows


def apply(settings: Settings) -> FeatureStore:
    """Register the definitions, as `feast apply` does from inside the folder."""
    folder = settings.feature_repo_path.resolve()
    (folder / names.CLUSTER_REWARDS_PATH).mkdir(parents=True, exist_ok=True)
    store = open_store(folder, settings.redis_url)
    with _silent():
        store.apply(objects(folder))
    return store


def materialize(settings: Settings, *, until: int) -> int:
    """Write to Redis every row that is newer than the last run, up to `until` (UTC microseconds). Returns the rows read for it.

    With `stream.enabled` the rows of `cluster_rewards` are left to the stream: a view has one writer.

    Raises: DependencyUnavailableError; what was written stays, and the next run writes it again.
    """
    connect(settings.redis_url)  # before Feast does: it would try again for seconds, and not say which server is unavailable
    store = apply(settings)
    ibis.get_backend().raw_sql("SET enable_progress_bar = false")  # Feast reads through Ibis' default DuckDB, which draws on the screen
    end = datetime.fromtimestamp(until / 1e6, UTC)
    paths = {names.USER_CLUSTERS: names.USER_CLUSTERS_PATH, names.CLUSTER_REWARDS: names.CLUSTER_REWARDS_PATH}
    written = 0
    if settings.stream.enabled:
        del paths[names.CLUSTER_REWARDS]
    for view, path in paths.items():
        done = store.get_feature_view(view).most_recent_end_time
        start = done + timedelta(microseconds=1) if done else datetime(1970, 1, 1, tzinfo=UTC)
        rows = _rows_between(settings.feature_repo_path / path, start, end)
        if rows:
            with translated(settings.redis_url), _silent():
                store.materialize(start, end, feature_views=[view])
        written += rows
    return written


def online_rows(settings: Settings, client: redis.Redis) -> RewardRows:
    """The writer and reader of single rows of `cluster_rewards`, through this client."""
    return RewardRows(client, open_store(settings.feature_repo_path, settings.redis_url))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Feast prints and draws progress bars of its own."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _rows_between(path: Path, start: datetime, end: datetime) -> int:
    if not path.exists() or (path.is_dir() and not any(path.glob("*.parquet"))):
        return 0
    time = ds.field(names.TIMESTAMP)
    first, last = (moment.astimezone(UTC).replace(tzinfo=None) for moment in (start, end))
    return int(ds.dataset(path, format="parquet").count_rows(filter=(time >= first) & (time <= last)))
