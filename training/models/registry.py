"""The model registry: MLflow, for metadata and plain files only; nothing is ever unpickled."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

import msgspec
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from bandit.errors import CorruptModelError, NoEarlierChampionError, UnknownModelError
from bandit.model.linear_model import LinearModel, model_from_bytes, sha256
from bandit.settings.load import Settings

CHAMPION = "champion"
_PREVIOUS = "promoted_over"
_SHA256 = "sha256"
_MODEL_FILE = "model.msgpack"
_MANIFEST_FILE = "manifest.json"


class ModelRegistry:
    """Versions of the model, and which of them serves."""

    def __init__(self, settings: Settings) -> None:
        """Connect to MLFLOW_TRACKING_URI, else the settings' uri, else SQLite in the data folder."""
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        self._name = settings.mlflow.model
        folder = (settings.data_path / "mlflow").resolve()
        uri = os.environ.get("MLFLOW_TRACKING_URI") or settings.mlflow.tracking_uri
        if not uri:
            folder.mkdir(parents=True, exist_ok=True)
            uri = f"sqlite:///{folder / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        experiment = self._client.get_experiment_by_name(settings.mlflow.experiment)
        location = (folder / "artifacts").as_uri() if uri.startswith("sqlite:") else None
        self._experiment = experiment.experiment_id if experiment else self._client.create_experiment(settings.mlflow.experiment, location)
        try:
            self._client.get_registered_model(self._name)
        except MlflowException:
            self._client.create_registered_model(self._name)

    def add(self, model: LinearModel, metrics: dict[str, float]) -> str:
        """Record a run with the model's files, and register it; returns the new version."""
        data = model.to_bytes()
        run = self._client.create_run(self._experiment)
        run_id = run.info.run_id
        for name, value in metrics.items():
            self._client.log_metric(run_id, name, value)
        for name in ("learner", "trained_from", "trained_until", "feature_version"):
            self._client.log_param(run_id, name, getattr(model.manifest, name))
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / _MODEL_FILE).write_bytes(data)
            (Path(folder) / _MANIFEST_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(model.manifest)))
            self._client.log_artifacts(run_id, folder)
        self._client.set_terminated(run_id)
        version = self._client.create_model_version(self._name, run.info.artifact_uri, run_id, tags={_SHA256: sha256(data)})
        return str(version.version)

    def newest(self) -> str | None:
        """The version registered last."""
        versions = self._client.search_model_versions(f"name='{self._name}'")
        return str(max((int(version.version) for version in versions), default=0)) if versions else None

    def champion(self) -> str | None:
        """The version that serves."""
        try:
            return str(self._client.get_model_version_by_alias(self._name, CHAMPION).version)
        except MlflowException:
            return None

    def load(self, version: str) -> LinearModel:
        """The model of a version, checked against the sha256 that it was registered with.

        Raises: UnknownModelError, CorruptModelError.
        """
        try:
            found = self._client.get_model_version(self._name, version)
        except MlflowException as error:
            raise UnknownModelError(version, self._name) from error
        with tempfile.TemporaryDirectory() as folder:
            try:
                data = Path(self._client.download_artifacts(found.run_id, _MODEL_FILE, folder)).read_bytes()
            except (MlflowException, OSError) as error:
                raise CorruptModelError(f"version {version}", f"its file cannot be read: {error}") from error
        return model_from_bytes(data, found.tags[_SHA256])

    def set_champion(self, version: str) -> None:
        """Make a version the one that serves, remembering which one it replaced."""
        before = self.champion()
        if before == version:
            return
        if before is not None:
            self._client.set_model_version_tag(self._name, version, _PREVIOUS, before)
        self._client.set_registered_model_alias(self._name, CHAMPION, version)

    def before_champion(self) -> str:
        """The version that served before the champion.

        Raises: NoEarlierChampionError.
        """
        champion = self.champion()
        before = self._client.get_model_version(self._name, champion).tags.get(_PREVIOUS) if champion else None
        if before is None:
            raise NoEarlierChampionError(self._name)
        return str(before)

    def go_back(self, version: str) -> None:
        """Make an earlier champion the champion again; what it once replaced stays remembered."""
        self._client.set_registered_model_alias(self._name, CHAMPION, version)
