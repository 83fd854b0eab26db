"""Small updates: published when they predict the newest rows better and change little, and never otherwise."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from bandit.settings.load import Settings, load_settings
from tests.conftest import Deployment
from tests.leases import owned_elsewhere
from tests.tables_made import DAY, MINUTE, NOW, decision, feedback, write_decisions, write_feedback
from training.models.join import join
from training.models.promote import promote
from training.models.registry import ModelRegistry
from training.models.train import train
from training.update import Updated, keep_learning, update

DRAWN = (("a", "i"), ("b", "j"))


def log(deployment: Deployment, start: int, count: int, repinned: int) -> None:
    """Decisions of two draws with an impression each; one in `repinned` of the first cluster's is repinned."""
    made = [decision(number, at=NOW - 2 * DAY + number * MINUTE, drawn=DRAWN) for number in range(start, start + count)]
    events = []
    for one in made:
        for cluster, query in DRAWN:
            fields = {"decision_id": one.decision_id, "cluster_id": cluster, "query_id": query}
            events.append(feedback(f"{one.seed}{query}", at=one.decided_at + MINUTE, **fields))
            if cluster == "a" and one.seed % repinned == 0:
                events.append(feedback(f"{one.seed}{query}+", at=one.decided_at + MINUTE, action="repin", **fields))
    write_decisions(deployment.settings, made, name=f"{start:05d}")
    write_feedback(deployment.settings, events, name=f"{start:05d}")


def allowing(deployment: Deployment, change: float) -> Settings:
    """The settings with another limit of what counts as small."""
    training = deployment.settings.training.model_copy(update={"largest_update": change})
    return deployment.settings.model_copy(update={"training": training})


@pytest.fixture
def serving(learning: Deployment) -> Deployment:
    """A model that was trained on the first 100 decisions, all of them, serves."""
    learning = learning.change(mode='"off"')
    log(learning, 0, 100, 3)
    join(learning.settings, as_of=NOW)
    train(learning.settings, as_of=NOW)
    promote(learning.settings)
    return learning


def test_without_a_model_there_is_nothing_to_update(learning: Deployment) -> None:
    log(learning, 0, 100, 3)
    assert update(learning.settings, as_of=NOW) == Updated(
        version=None, reason="no model serves yet: the first comes from `query-rewards retrain`"
    )


def test_what_the_serving_model_has_seen_judges_nothing(serving: Deployment) -> None:
    done = update(serving.settings, as_of=NOW)
    assert (done.version, done.reason) == (None, "the serving model has seen the newest rows: nothing to judge an update on")


def test_an_update_that_predicts_better_and_changes_little_serves(serving: Deployment) -> None:
    log(serving, 100, 400, 2)
    done = update(allowing(serving, 0.5), as_of=NOW)
    assert done.reason == ""
    assert (done.version, done.rows) == ("2", 202)
    assert done.error_after < done.error_before
    assert 0.0 < done.change <= 0.5
    registry = ModelRegistry(serving.settings)
    assert registry.champion() == "2"
    assert registry.load("2").manifest.rows == 798  # the newest fifth judged it


def test_an_update_that_changes_much_waits_for_retrain(serving: Deployment) -> None:
    log(serving, 100, 400, 2)
    done = update(allowing(serving, 1e-6), as_of=NOW)
    assert done.version is None
    assert done.error_after < done.error_before
    assert "retrain decides" in done.reason
    assert ModelRegistry(serving.settings).champion() == "1"


def test_an_update_that_predicts_no_better_is_not_published(serving: Deployment) -> None:
    log(serving, 100, 400, 1)  # the clusters trade places: what was learned of most rows is wrong for the newest
    log(serving, 500, 60, 1000)
    done = update(serving.settings, as_of=NOW)
    assert done.version is None
    assert done.error_after >= done.error_before
    assert "no better" in done.reason
    assert ModelRegistry(serving.settings).champion() == "1"


def test_a_retrain_that_runs_goes_first(serving: Deployment) -> None:
    shown: list[Updated] = []
    turns = iter([False, True])
    with owned_elsewhere(serving.settings.data_path, "retrain"):
        keep_learning(serving.settings, clock=lambda: NOW, wait=lambda _: next(turns), show=shown.append)
    assert [one.version for one in shown] == [None]
    assert "'retrain' has been running" in shown[0].reason


def test_the_verb_is_off_by_default_and_ends_when_asked(serving: Deployment) -> None:
    command = [sys.executable, "-m", "query_rewards", "learn", "--settings", str(serving.settings_file), "--json"]
    off = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (off.returncode, "training.every_seconds" in off.stderr) == (2, True)
    on = {**os.environ, "QUERY_REWARDS_TRAINING__EVERY_SECONDS": "0.2"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=on) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert json.loads(line)["version"] is None
    assert load_settings(serving.settings_file).training.every_seconds == 0.0
