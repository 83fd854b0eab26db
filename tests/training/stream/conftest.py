"""A stream of its own for each test."""

from __future__ import annotations

import pytest

from tests.conftest import Deployment
from tests.streamed import Streamed
from training.features.feature_store import apply

LONG_AGO = "[stream]\nenabled = true\narchive_seconds = 1000.0\nlease_seconds = 100.0"


@pytest.fixture
def streamed(deployment: Deployment) -> Streamed:
    """Nothing is archived, and no lease runs out, unless the test makes it so."""
    changed = deployment.change(LONG_AGO)
    apply(changed.settings)
    return Streamed(changed)
