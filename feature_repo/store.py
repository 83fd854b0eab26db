"""Opening the Feast store: feature_store.yaml, with the registry beside it and the Redis of our own settings."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import yaml
from feast import FeatureStore
from feast.repo_config import RepoConfig

from bandit.errors import FeatureStoreError
from feature_repo.connection import TIMEOUT_SECONDS, client_of


def open_store(folder: Path, redis_url: str, *, timeout: float = TIMEOUT_SECONDS) -> FeatureStore:
    """The store described in `folder`.

    Feast's own client is replaced by ours: Feast's form of an address has no place for a unix socket, for IPv6, or for a comma in a
    password, and its client sends a command again by itself.

    Args:
        folder: where feature_store.yaml lies; a relative path of the registry counts from here.
        redis_url: the online store, whatever the yaml says.
        timeout: seconds that one call to Redis may take.

    Raises: FeatureStoreError when there is no feature_store.yaml.
    """
    folder = folder.resolve()
    file = folder / "feature_store.yaml"
    if not file.exists():
        raise FeatureStoreError(f"{file}: no such file; `query-rewards init` writes one")
    # Feast warns that serve_features_while_materializing matters to shared registries only; we keep it for those who move to one.
    logging.getLogger("feast.repo_config").setLevel(logging.ERROR)
    content = yaml.safe_load(os.path.expandvars(file.read_text(encoding="utf-8")))
    config = RepoConfig(**content, repo_path=folder)
    if "://" not in config.registry.path:  # else a SQL registry or an object store, which Feast opens by itself
        config.registry.path = str(folder / config.registry.path)
    store = FeatureStore(config=config)
    store.provider.online_store._client = client_of(redis_url, timeout=timeout)  # noqa: SLF001 -- Feast takes no client from outside
    return store
