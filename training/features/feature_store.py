"""The batch side's way into Feast: apply the definitions, open the rows of the online store."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator

import redis

with warnings.catch_warnings():  # importing Feast switches on the DeprecationWarnings of the whole process
    from feast import FeatureStore

from bandit.settings.load import Settings
from feature_repo import names
from feature_repo.definitions import objects
from feature_repo.store import open_store
from training.features.online_rows import RewardRows


def apply(settings: Settings) -> FeatureStore:
    """Register the definitions, as `feast apply` does from inside the folder."""
    folder = settings.feature_repo_path.resolve()
    for path in (names.USER_CLUSTERS_PATH, names.CLUSTER_REWARDS_PATH):
        (folder / path).mkdir(parents=True, exist_ok=True)
    store = open_store(folder, settings.redis_url)
    with _silent():
        store.apply(objects(folder))
    return store


def online_rows(settings: Settings, client: redis.Redis) -> RewardRows:
    """The writer and reader of single rows of `cluster_rewards`, through this client."""
    return RewardRows(client, open_store(settings.feature_repo_path, settings.redis_url))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Feast prints and draws progress bars of its own."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
