"""The model registry: MLflow, for metadata and plain files only; nothing is ever unpickled."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import requests
import sqlalchemy
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from bandit.errors import CorruptModelError, DependencyUnavailableError, NoEarlierChampionError, RegistryError, UnknownModelError
from bandit.model.linear_model import LinearModel, model_from_bytes, sha256
from bandit.settings.load import Settings
from feature_repo.connection import without_password
from training.lock import still_leased
from training.logs.writing import write_whole
from training.models.database import artifacts, own_database

CHAMPION = "champion"
_PREVIOUS = "promoted_over"
_SHA256 = "sha256"
_DATA_FOLDER = "data_folder"  # tag of a run: a tracking server may be shared
_MODEL_FILE = "model.msgpack"
_MANIFEST_FILE = "manifest.json"
_MARK = "mlflow/registered.json"  # that the registered model was once made, and where
_NOT_THERE = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}  # of a version, an alias
_AWAY = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"}
# A tracking server that is down is told in seconds; MLflow's own defaults are seven retries of two minutes.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1"}


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is being registered."""

    model: bytes
    metrics: dict[str, float]


class ModelRegistry:
    """Versions of the model, and which of them serves."""

    def __init__(self, settings: Settings) -> None:
        """Connect to MLFLOW_TRACKING_URI, else the settings' uri, else SQLite in the data folder.

        Raises: DependencyUnavailableError, RegistryError.
        """
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it logs tracebacks of what it raises
        for name, value in ({"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"} | _PATIENCE).items():
            os.environ.setdefault(name, value)
        self._settings, self._name = settings, settings.mlflow.model
        self._kept = settings.data_path / "candidate.msgpack"
        uri = os.environ.get("MLFLOW_TRACKING_URI") or settings.mlflow.tracking_uri
        self._own = None if uri else (settings.data_path / "mlflow").resolve()
        self._place = without_password(uri) if uri else str(self._own)
        with _translated(self._place):
            if self._own is not None:
                uri = own_database(self._own, settings.mlflow.experiment)
            self._client = _Client(MlflowClient(tracking_uri=uri, registry_uri=uri), self._place)
        self._make_registered_model()

    def add(self, model: LinearModel, metrics: dict[str, float]) -> str:
        """Record a run with the model's files, and register it; returns the new version.

        The model lies in the data folder meanwhile, so that neither a kill nor a tracking server that goes away loses it.

        Raises: RegistryError, DependencyUnavailableError, LeaseLostError.
        """
        self.add_kept()
        still_leased()
        write_whole(self._kept, msgspec.msgpack.encode(_Kept(model=model.to_bytes(), metrics=metrics)))
        try:
            version = self._record(model, metrics)
        except DependencyUnavailableError as error:
            raise DependencyUnavailableError(error.service, error.place, f"{error.reason}; {self._kept_where}") from error
        except RegistryError as error:
            raise RegistryError(f"{error.problem}; {self._kept_where}", code=error.code) from error
        self._kept.unlink()
        return version

    def add_kept(self) -> None:
        """Register the model that an interrupted `add` left, if it did not come so far.

        Raises: as `add`.
        """
        if not self._kept.exists():
            return
        try:
            kept = msgspec.msgpack.decode(self._kept.read_bytes(), type=_Kept)
            model = model_from_bytes(kept.model, sha256(kept.model))
        except (CorruptModelError, msgspec.MsgspecError):  # of a version with other features
            self._kept.unlink()
            return
        self._tidy(self._experiment())
        versions = self._client.search_model_versions(f"name='{self._name}'")
        if all(version.tags.get(_SHA256) != sha256(kept.model) for version in versions):
            self._record(model, kept.metrics)
        self._kept.unlink()

    @property
    def _kept_where(self) -> str:
        return f"the trained model is kept in {self._kept}, and the next `query-rewards train` or `retrain` registers it"

    def _record(self, model: LinearModel, metrics: dict[str, float]) -> str:
        data, experiment = model.to_bytes(), self._experiment()
        self._tidy(experiment)
        run = self._client.create_run(experiment, tags={_DATA_FOLDER: str(self._settings.data_path.resolve())})
        run_id = run.info.run_id
        for name, value in metrics.items():
            self._client.log_metric(run_id, name, value)
        for name in ("learner", "trained_from", "trained_until", "feature_version"):
            self._client.log_param(run_id, name, getattr(model.manifest, name))
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / _MODEL_FILE).write_bytes(data)
            (Path(folder) / _MANIFEST_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(model.manifest)))
            self._client.log_artifacts(run_id, folder)
        still_leased()
        version = self._client.create_model_version(self._name, run.info.artifact_uri, run_id, tags={_SHA256: sha256(data)})
        self._client.set_terminated(run_id)
        return str(version.version)

    def newest(self) -> str | None:
        """The version registered last."""
        versions = self._client.search_model_versions(f"name='{self._name}'")
        return str(max((int(version.version) for version in versions), default=0)) if versions else None

    def champion(self) -> str | None:
        """The version that serves."""
        found = self._unless_missing(lambda: self._client.get_model_version_by_alias(self._name, CHAMPION))
        return str(found.version) if found is not None else None

    def sha256_of(self, version: str) -> str | None:
        """The digest that a version was registered with, None when there is no such version."""
        found = self._unless_missing(lambda: self._client.get_model_version(self._name, version))
        return found.tags.get(_SHA256) if found is not None else None

    def load(self, version: str) -> LinearModel:
        """The model of a version, checked against the sha256 that it was registered with.

        Raises: UnknownModelError, CorruptModelError.
        """
        found = self._unless_missing(lambda: self._client.get_model_version(self._name, version))
        if found is None or _SHA256 not in found.tags:
            raise UnknownModelError(version, self._name)
        with tempfile.TemporaryDirectory() as folder:
            try:
                data = Path(self._client.download_artifacts(found.run_id, _MODEL_FILE, folder)).read_bytes()
            except (RegistryError, OSError) as error:
                if isinstance(error, DependencyUnavailableError) and self._own is None:
                    raise
                raise CorruptModelError(f"version {version}", f"its file cannot be read: {error}") from error
        return model_from_bytes(data, found.tags[_SHA256])

    def set_champion(self, version: str, over: str | None) -> None:
        """Make a version the one that serves. `over`: the one that it replaced, to go back to; None keeps what is remembered."""
        still_leased()
        if over is not None and over != version:
            self._client.set_model_version_tag(self._name, version, _PREVIOUS, over)
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

    def _unless_missing(self, ask: Callable[[], Any]) -> Any:  # noqa: ANN401 -- MLflow is untyped
        try:
            return ask()
        except RegistryError as error:
            if error.code in _NOT_THERE:
                return None
            raise

    def _make_registered_model(self) -> None:
        """Make it once. When it was there and is not, a person deleted it, and new versions would begin at 1 while another 1 serves."""
        mark, here = self._settings.data_path / _MARK, msgspec.json.encode([self._place if self._own is None else "", self._name])
        if self._unless_missing(lambda: self._client.get_registered_model(self._name)) is None:
            if mark.exists() and mark.read_bytes() == here:
                raise RegistryError(
                    f"the registered model {self._name!r} was deleted from MLflow at {self._place}; what serves goes on serving. Set "
                    f"mlflow.model to another name, or delete {mark} to begin again at version 1"
                )
            try:
                self._client.create_registered_model(self._name)
            except RegistryError as error:
                if error.code != "RESOURCE_ALREADY_EXISTS":  # by another process, since we asked
                    raise
        if not mark.exists() or mark.read_bytes() != here:
            write_whole(mark, here)

    def _experiment(self) -> str:
        name = self._settings.mlflow.experiment
        found = self._client.get_experiment_by_name(name)
        if found is None:
            return str(self._client.create_experiment(name, artifacts(self._own) if self._own else None))
        if found.lifecycle_stage != "active":
            raise RegistryError(
                f"the experiment {name!r} was deleted from MLflow at {self._place}: restore it with `mlflow experiments restore "
                f"--experiment-id {found.experiment_id}`, or set mlflow.experiment to another name"
            )
        return str(found.experiment_id)

    def _tidy(self, experiment: str) -> None:
        """End the runs that a killed process left: those whose model was registered, and with them the others, which nobody needs."""
        folder = str(self._settings.data_path.resolve())
        for run in self._client.search_runs([experiment], "attributes.status = 'RUNNING'"):
            if run.data.tags.get(_DATA_FOLDER) != folder:
                continue
            run_id = run.info.run_id
            if self._client.search_model_versions(f"run_id='{run_id}'"):
                self._client.set_terminated(run_id)
                continue
            self._client.set_terminated(run_id, "KILLED")
            self._client.delete_run(run_id)
            if self._own is not None:
                shutil.rmtree(self._own / "artifacts" / run_id, ignore_errors=True)


class _Client:
    """MLflow's client, whose errors are ours."""

    def __init__(self, client: MlflowClient, place: str) -> None:
        self._client, self._place = client, place

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 -- as above
        method = getattr(self._client, name)

        def call(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
            with _translated(self._place):
                return method(*arguments, **options)

        return call


@contextlib.contextmanager
def _translated(place: str) -> Iterator[None]:
    """Whatever MLflow and the libraries below it raise, in one line."""
    try:
        yield
    except MlflowException as error:
        line = str(error).partition("\n")[0]
        if error.error_code in _AWAY:
            raise DependencyUnavailableError("MLflow", place, line) from error
        raise RegistryError(f"MLflow at {place}: {line}", code=error.error_code) from error
    except (sqlalchemy.exc.SQLAlchemyError, requests.RequestException) as error:
        raise DependencyUnavailableError("MLflow", place, str(error).partition("\n")[0]) from error
