"""A deployment on disk: the settings file and the Feast repository next to it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from bandit.settings.load import DEFAULT_FILE
from feature_repo import names
from training.logs.schemas import CLUSTER_REWARDS, USER_CLUSTERS
from training.logs.tables import write_table
from training.logs.writing import storage_errors, write_whole


def create(folder: Path, settings: str | None = None) -> Mapping[Path, bool]:
    """Write what a deployment starts from: settings, Feast repository, and empty snapshots; nothing that exists is overwritten.

    Args:
        folder: made when it is not there.
        settings: content of the settings file; the commented defaults if None.

    Returns: each file to look at, and whether it was written now.
    """
    repository = folder / "feature_repo"
    with storage_errors(repository):
        repository.mkdir(parents=True, exist_ok=True)
    files = {
        folder / DEFAULT_FILE: resources.files("training") / DEFAULT_FILE,
        repository / "feature_store.yaml": resources.files("feature_repo") / "feature_store.yaml",
        repository / "definitions.py": resources.files("feature_repo") / "definitions.py",
    }
    written = {}
    for target, source in files.items():
        written[target] = not target.exists()
        if target.exists():
            continue
        if settings is not None and target.name == DEFAULT_FILE:
            write_whole(target, settings.encode())
        else:
            write_whole(target, source.read_bytes())
    empty = {
        repository / names.USER_CLUSTERS_PATH / "empty.parquet": USER_CLUSTERS,
        repository / names.CLUSTER_REWARDS_PATH / "empty.parquet": CLUSTER_REWARDS,  # so that Feast's commands find columns to read
    }
    for target, schema in empty.items():
        if not target.exists():
            write_table(schema.empty_table(), target)
    return written
