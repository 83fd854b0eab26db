"""Opening the Feast store: feature_store.yaml, with the registry beside it and the Redis of our own settings."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from feast import FeatureStore
from feast.repo_config import RepoConfig

from bandit.errors import FeatureStoreError


def open_store(folder: Path, redis_url: str, *, timeout: float | None = None) -> FeatureStore:
    """The store described in `folder`.

    Args:
        folder: where feature_store.yaml lies; relative paths in it count from here.
        redis_url: the online store, whatever the yaml says.
        timeout: seconds that one call to Redis may take; None waits.

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
    config.online_store.connection_string = connection_string(redis_url, timeout=timeout)
    config.registry.path = str(folder / config.registry.path)
    return FeatureStore(config=config)


def connection_string(url: str, *, timeout: float | None = None) -> str:
    """A redis:// URL in the form that Feast reads, `host:port,key=value,…`."""
    parts = urlsplit(url)
    options = {"db": parts.path.strip("/") or "0"}
    if parts.username:
        options["username"] = unquote(parts.username)
    if parts.password:
        options["password"] = unquote(parts.password)
    if parts.scheme == "rediss":
        options["ssl"] = "true"
    if timeout is not None:
        options |= {"socket_timeout": str(timeout), "socket_connect_timeout": str(timeout)}
    return ",".join([f"{parts.hostname}:{parts.port or 6379}", *(f"{key}={value}" for key, value in options.items())])
