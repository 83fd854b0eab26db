"""Fixtures that every test may use: a real Redis, and a deployment of its own for each test."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
import redis

from bandit.settings.load import DEFAULT_FILE, Settings, load_settings
from training.cli import init
from training.local_redis import URL_VARIABLE, local_redis

_DATABASES = itertools.cycle(range(1, 16))  # Redis' numbered databases; 0 is left to whoever uses the server otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A folder as `query-rewards init` makes it, its settings, and a Redis database that nobody else uses."""

    folder: Path
    settings: Settings

    @property
    def settings_file(self) -> Path:
        """What `--settings` takes."""
        return self.folder / DEFAULT_FILE

    @property
    def redis(self) -> redis.Redis:
        """A client of the deployment's own database."""
        return redis.Redis.from_url(self.settings.redis_url)

    def change(self, toml: str = "", /, **replaced: object) -> Deployment:
        """The same folder with other settings: `toml` is appended to the file, and each named key of it gets another value."""
        lines = self.settings_file.read_text().splitlines()
        for key, value in replaced.items():
            places = [index for index, line in enumerate(lines) if line.startswith(f"{key} = ")]
            assert len(places) == 1, f"{key!r} stands {len(places)} times in the file that init writes"
            lines[places[0]] = f"{key} = {value}"
        self.settings_file.write_text("\n".join([*lines, toml, ""]))
        return Deployment(folder=self.folder, settings=load_settings(self.settings_file))


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """One Redis for all tests: our own, or the one that QUERY_REWARDS_REDIS_URL names."""
    if os.environ.get(URL_VARIABLE) and "PYTEST_XDIST_WORKER" in os.environ:
        pytest.exit(f"{URL_VARIABLE} names one Redis for several workers, which would empty it under each other: use --numprocesses 0")
    with local_redis() as url:
        for number in range(1, 16):
            size = redis.Redis.from_url(_database(url, number)).dbsize()
            assert not size, f"the tests empty databases 1 to 15 of their Redis, and database {number} holds {size} keys of somebody's"
        yield url
        for number in range(1, 16):
            redis.Redis.from_url(_database(url, number)).flushdb()


def _database(url: str, number: int) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{number}"))


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine that runs the tests reaches them."""
    for variable in os.environ:
        if variable.startswith(("QUERY_REWARDS_", "MLFLOW_")):
            monkeypatch.delenv(variable)


@pytest.fixture
def empty_redis(redis_url: str, plain_environment: None) -> str:
    """URL of a database with nothing in it."""
    url = _database(redis_url, next(_DATABASES))
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


@pytest.fixture
def deployment(tmp_path: Path, empty_redis: str) -> Deployment:
    """A fresh deployment."""
    folder = tmp_path / "deployment"
    init(folder)
    (folder / DEFAULT_FILE).write_text(
        (folder / DEFAULT_FILE).read_text().replace('redis_url = "redis://127.0.0.1:6379/0"', f'redis_url = "{empty_redis}"')
    )
    made = Deployment(folder=folder, settings=load_settings(folder / DEFAULT_FILE))
    assert made.settings.redis_url == empty_redis
    return made


@pytest.fixture
def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables and nothing else: its dozens of migrations take seconds, so they are run once."""
    from mlflow import MlflowClient  # noqa: PLC0415 -- takes seconds, and few tests need it

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{file}", registry_uri=f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def learning(deployment: Deployment, migrated_database: Path) -> Deployment:
    """A deployment that trains on few rows, with a registry that need not migrate its tables first."""
    folder = deployment.settings.data_path / "mlflow"
    folder.mkdir(parents=True)
    shutil.copy(migrated_database, folder / "mlflow.db")
    return deployment.change("[training]\nminimum_rows = 40")
