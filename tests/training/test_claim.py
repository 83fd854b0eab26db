"""Which data folder a Redis belongs to: one, moved or not, and no copy of it."""

from __future__ import annotations

import shutil
from contextvars import Context
from pathlib import Path

import pytest

from bandit.errors import LeaseLostError, OtherDeploymentError
from bandit.settings.load import DEFAULT_FILE, Settings, load_settings
from tests.conftest import Deployment
from tests.tables_made import KEYS
from training.claim import check_claim, claim, running
from training.lock import leased
from training.logs.archive import move_logs
from training.stream.metrics import StreamMetrics
from training.stream.run import open_consumer


def run(settings: Settings) -> None:
    with running(settings, "join"):
        move_logs(settings)


def copied(deployment: Deployment, name: str) -> Settings:
    folder = deployment.folder.with_name(name)
    shutil.copytree(deployment.folder, folder)
    return load_settings(folder / DEFAULT_FILE)


def test_a_second_folder_is_refused_with_the_way_out_in_the_message(deployment: Deployment, tmp_path: Path) -> None:
    other = copied(deployment, "other")  # before the first run: of another id
    run(deployment.settings)
    with pytest.raises(OtherDeploymentError) as raised:
        run(other)
    for part in (str(deployment.settings.data_path), "project name", "redis_url", KEYS.deployment):
        assert part in str(raised.value)
    assert "\n" not in str(raised.value)
    with pytest.raises(OtherDeploymentError):
        open_consumer(other, StreamMetrics())
    run(deployment.settings)
    deployment.redis.delete(KEYS.deployment)  # the way out
    run(other)
    with pytest.raises(OtherDeploymentError):
        run(deployment.settings)


def test_a_moved_folder_goes_on_and_a_copy_of_it_does_not(deployment: Deployment) -> None:
    run(deployment.settings)
    copy = copied(deployment, "copy")
    with pytest.raises(OtherDeploymentError):
        run(copy)  # the original is still there
    moved = deployment.folder.with_name("moved")
    deployment.folder.rename(moved)
    run(load_settings(moved / DEFAULT_FILE))
    moved.rename(moved.with_name("away"))
    for _ in range(3):
        with pytest.raises(OtherDeploymentError):
            run(copy)  # as on another machine: the original is not seen, but has run since
    run(load_settings(moved.with_name("away") / DEFAULT_FILE))


def test_a_redis_that_lost_runs_or_everything_still_belongs_to_its_folder(deployment: Deployment) -> None:
    run(deployment.settings)
    old = deployment.redis.get(KEYS.deployment)
    run(deployment.settings)
    deployment.redis.set(KEYS.deployment, old)  # a backup
    run(deployment.settings)
    deployment.redis.flushdb()
    run(deployment.settings)
    check_claim(deployment.settings, deployment.redis)


def test_a_folder_that_lost_its_leases_goes_on(deployment: Deployment) -> None:
    for _ in range(3):
        run(deployment.settings)
    shutil.rmtree(deployment.settings.data_path / "lease")
    for _ in range(3):
        run(deployment.settings)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"null"])
def test_a_damaged_claim_is_nobodys(deployment: Deployment, content: bytes) -> None:
    run(deployment.settings)
    (deployment.settings.data_path / "deployment.json").write_bytes(content)
    with pytest.raises(OtherDeploymentError):
        run(deployment.settings)
    deployment.redis.set(KEYS.deployment, content or b"\x00")
    with pytest.raises(OtherDeploymentError, match="unknown"):
        run(deployment.settings)


def test_a_run_that_lost_its_lease_claims_nothing(deployment: Deployment) -> None:
    with leased(deployment.settings.data_path, "frozen") as lease:
        for file in (deployment.settings.data_path / "lease").iterdir():
            file.unlink()  # as if its heart had stopped
        Context().run(run, deployment.settings)
        held = deployment.redis.get(KEYS.deployment)
        with pytest.raises(LeaseLostError):
            claim(deployment.settings, lease)
        assert deployment.redis.get(KEYS.deployment) == held
