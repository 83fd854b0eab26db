"""What MLflow can do to a deployment: be away, lose things, be moved, be killed at its first start. One line says how to go on."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from bandit.errors import DependencyUnavailableError, LeaseLostError, RegistryError, Status
from bandit.model.featurize import FEATURE_NAMES
from bandit.model.linear_model import LinearModel, weight_count
from bandit.settings.load import DEFAULT_FILE, Settings, load_settings
from tests.conftest import Deployment
from tests.kills import Writes, in_child, start, state
from tests.ports import free_port
from tests.strategies import linear_model
from tests.tables_made import KEYS, NOW, write_training_rows
from training.lock import leased
from training.models.database import own_database
from training.models.promote import promote
from training.models.registry import ModelRegistry
from training.retrain import retrain


def model(number: int) -> LinearModel:
    return linear_model(np.full(weight_count(len(FEATURE_NAMES)), number / 1000), rows=number)


def add(settings: Settings, number: int) -> str:
    return ModelRegistry(settings).add(model(number), {"rows": float(number)})


def with_server(settings: Settings, uri: str) -> Settings:
    return settings.model_copy(update={"mlflow": settings.mlflow.model_copy(update={"tracking_uri": uri})})


def assert_one_line(error: Exception, *parts: str) -> None:
    assert "\n" not in str(error)
    for part in parts:
        assert part in str(error)


# -- a tracking server ------------------------------------------------------------------------------------------------------------


def test_a_tracking_server_that_is_down_is_told_in_seconds(deployment: Deployment) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    began = time.monotonic()
    with pytest.raises(DependencyUnavailableError) as raised:
        ModelRegistry(with_server(deployment.settings, uri))
    assert time.monotonic() - began < 10.0
    assert raised.value.status == Status.UNAVAILABLE == 4
    assert_one_line(raised.value, uri, "MLflow")


@contextmanager
def silent_server() -> Iterator[str]:
    """Takes connections, and answers none."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_tracking_server_that_does_not_answer_is_told_in_seconds(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")  # ours is 10; a second each here, and MLflow's own default is 120
    with silent_server() as uri:
        began = time.monotonic()
        with pytest.raises(DependencyUnavailableError):
            ModelRegistry(with_server(deployment.settings, uri))
        assert time.monotonic() - began < 10.0


def test_an_outage_keeps_the_trained_model_and_the_next_run_registers_it(learning: Deployment) -> None:
    registry, kept = ModelRegistry(learning.settings), learning.settings.data_path / "candidate.msgpack"
    with closing(sqlite3.connect(learning.settings.data_path / "mlflow" / "mlflow.db")) as database:
        database.execute("CREATE TRIGGER outage BEFORE INSERT ON model_versions BEGIN SELECT RAISE(ABORT, 'no'); END")
        with pytest.raises(DependencyUnavailableError) as raised:
            registry.add(model(7), {"rows": 7.0})
        database.execute("DROP TRIGGER outage")
    assert_one_line(raised.value, str(kept), "query-rewards train")
    assert kept.exists()
    later = ModelRegistry(learning.settings)
    assert later.newest() is None
    later.add_kept()
    assert not kept.exists()
    assert later.load("1").to_bytes() == model(7).to_bytes()
    later.add_kept()
    assert later.newest() == "1"
    runs = state(learning.settings, learning.folder)["runs"]
    assert runs == [("run of 1", "FINISHED", [("rows", 7.0)])]  # and nothing of the one that the outage cut off


# -- deleted, moved ---------------------------------------------------------------------------------------------------------------


def test_a_deleted_experiment_is_told_with_the_way_out(learning: Deployment) -> None:
    add(learning.settings, 1)
    client = ModelRegistry(learning.settings)._client
    experiment = client.get_experiment_by_name("query-rewards").experiment_id
    client.delete_experiment(experiment)
    with pytest.raises(RegistryError) as raised:
        add(learning.settings, 2)
    assert_one_line(raised.value, f"mlflow experiments restore --experiment-id {experiment}", "mlflow.experiment", "candidate.msgpack")
    client.restore_experiment(experiment)  # the way out
    assert add(learning.settings, 3) == "3"
    assert ModelRegistry(learning.settings).load("2").manifest.rows == 2


def test_a_deleted_registered_model_is_told_with_the_way_out(learning: Deployment) -> None:
    add(learning.settings, 1)
    promote(learning.settings)
    ModelRegistry(learning.settings)._client.delete_registered_model("query-rewards")
    served = learning.redis.get(KEYS.champion)
    mark = learning.settings.data_path / "mlflow" / "registered.json"
    with pytest.raises(RegistryError) as raised:
        add(learning.settings, 2)
    assert_one_line(raised.value, str(mark), "mlflow.model", "serves")
    assert learning.redis.get(KEYS.champion) == served
    mark.unlink()  # the way out
    assert add(learning.settings, 2) == "1"


def test_a_moved_deployment_has_its_models_and_retrains(learning: Deployment) -> None:
    before = learning.change(mode='"off"').settings
    write_training_rows(before, 0, 40)
    assert retrain(before, as_of=NOW, now=NOW).promoted is not None
    moved = learning.folder.with_name("moved")
    learning.folder.rename(moved)
    settings = load_settings(moved / DEFAULT_FILE)
    assert ModelRegistry(settings).load("1").manifest.rows == 80
    write_training_rows(settings, 40, 20)
    promoted = retrain(settings, as_of=NOW, now=NOW).promoted
    assert promoted is not None
    assert (promoted.version, promoted.before) == ("2", "1")
    assert len(list((settings.data_path / "mlflow").rglob("model.msgpack"))) == 2
    assert not learning.folder.exists()  # nothing is written to where it was


# -- the first start --------------------------------------------------------------------------------------------------------------


def migrated(folder: Path, at: float) -> int:
    """The file that a first start at that moment leaves."""
    time.sleep(max(at - time.time(), 0.0))
    own_database(folder, "query-rewards")
    return (folder / "mlflow.db").stat().st_ino


def test_two_first_starts_at_one_time_migrate_once(deployment: Deployment) -> None:
    folder = deployment.settings.data_path / "mlflow"
    in_child(time.time)  # the server of processes has imported everything
    both = [start(partial(migrated, folder, time.time() + 1.0)) for _ in range(2)]
    first, second = (child.finish() for child in both)
    assert first == second  # a second migration would have taken the file from under whoever used the first
    assert first is not None


# -- a frozen owner ---------------------------------------------------------------------------------------------------------------


def add_three(settings: Settings) -> None:
    for number in (1, 2, 3):
        add(settings, number)


def champion(settings: Settings) -> str | None:
    return ModelRegistry(settings).champion()


def promotion(settings: Settings, version: str) -> str:
    """Promote under a lease that ends soon without a heartbeat; the version, or why not."""
    with leased(settings.data_path, "promote", seconds=1.5):
        try:
            return promote(settings, version=version).version
        except LeaseLostError as error:
            return str(error)


def test_an_owner_that_was_frozen_in_a_promotion_hands_nothing_over(learning: Deployment) -> None:
    settings = learning.settings
    in_child(partial(add_three, settings))

    def redis() -> dict[bytes, tuple[bytes, bool]]:
        return {key: (learning.redis.dump(key), learning.redis.ttl(key) > 0) for key in learning.redis.scan_iter()}

    # The first script is the claim, the second hands the model over.
    frozen = start(partial(promotion, settings, "2"), Writes(folder=learning.folder, name="EVAL", number=1, sent=signal.SIGSTOP))
    assert frozen.process.pid is not None
    deadline = time.monotonic() + 60.0
    while Path(f"/proc/{frozen.process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert learning.redis.get(KEYS.champion) is None
    assert in_child(partial(promotion, settings, "3")) == "3"
    before = redis()
    os.kill(frozen.process.pid, signal.SIGCONT)
    finished = frozen.finish()
    assert finished is not None
    assert "another run has taken over" in finished[0]
    assert redis() == before
    assert in_child(partial(champion, settings)) == "3"
    assert not (settings.data_path / "promotion.json").exists()
