"""Killed at the writes of each step that changes a model: the next run leaves what a run without the kill leaves."""

from __future__ import annotations

from functools import partial

import pytest

from bandit.settings.load import Settings
from tests.conftest import Deployment
from tests.kills import in_child, kill_everywhere
from tests.tables_made import NOW, write_training_rows
from training.models.join import join
from training.models.promote import promote, rollback
from training.models.train import train


def trained(settings: Settings, start: int, count: int) -> None:
    write_training_rows(settings, start, count)
    join(settings, as_of=NOW)
    train(settings, as_of=NOW)


def one_serves(settings: Settings) -> None:
    """Version 1 serves, version 2 is a candidate."""
    trained(settings, 0, 40)
    promote(settings)
    trained(settings, 40, 20)


def more_rows(settings: Settings) -> None:
    write_training_rows(settings, 60, 20)
    join(settings, as_of=NOW)


@pytest.fixture
def two(learning: Deployment) -> Deployment:
    """A deployment with two versions, the first of which serves."""
    deployment = learning.change(mode='"off"')
    in_child(partial(one_serves, deployment.settings))
    return deployment


def test_a_promotion(two: Deployment) -> None:
    assert kill_everywhere(two.folder, two.settings, partial(promote, two.settings, version="2"), few=4) >= 4


def test_a_rollback(two: Deployment) -> None:
    in_child(partial(promote, two.settings))
    assert kill_everywhere(two.folder, two.settings, partial(rollback, two.settings), few=4, again=False) >= 4


def test_a_training(two: Deployment) -> None:
    in_child(partial(more_rows, two.settings))
    assert kill_everywhere(two.folder, two.settings, partial(train, two.settings, as_of=NOW), few=4) >= 4
