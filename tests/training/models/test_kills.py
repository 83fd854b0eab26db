"""Killed at the steps of a promotion: the next run leaves what a run without the kill leaves."""

from __future__ import annotations

import os

import numpy as np
import pytest

from bandit.model.featurize import FEATURE_NAMES
from bandit.model.linear_model import LinearModel, weight_count
from tests.conftest import Deployment
from tests.kills import in_child, kill_everywhere
from tests.strategies import linear_model
from training.lock import leased
from training.models.promote import promote
from training.models.registry import ModelRegistry

EVERY = int(os.environ.get("KILL_EVERY", "7"))  # step that is killed at; 1 takes many minutes


def model(number: int) -> LinearModel:
    return linear_model(np.full(weight_count(len(FEATURE_NAMES)), number / 1000), rows=number)


def add(deployment: Deployment, number: int) -> None:
    with leased(deployment.settings.data_path, "train"):
        registry = ModelRegistry(deployment.settings)
        registry.add_kept()
        newest = registry.newest()
        if newest is None or registry.load(newest).manifest.rows != number:
            registry.add(model(number), {"rows": 1.0})


@pytest.fixture
def two(learning: Deployment) -> Deployment:
    """Version 1 serves, version 2 is a candidate."""

    def prepare() -> None:
        add(learning, 1)
        promote(learning.settings)
        add(learning, 2)

    in_child(prepare)
    return learning


def test_a_promotion(two: Deployment) -> None:
    assert kill_everywhere(two.folder, two.settings, lambda: promote(two.settings, version="2"), every=EVERY) > 2
