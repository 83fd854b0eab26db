"""What the watch over the served model says."""

from __future__ import annotations

import logging
import time

import pytest

from feature_repo.connection import client_of
from serving.served_model import ServedModel
from tests.served_world import Served, hand_over
from tests.strategies import random_model
from tests.tables_made import KEYS


def test_redis_going_away_and_coming_back_is_a_line_each(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    model = ServedModel(client_of(served.redis_url, timeout=0.05), KEYS, poll_seconds=0.01)
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        with served.halted():
            time.sleep(0.4)  # several looks
        model.refresh()
        model.refresh()
    assert [record.message.partition(",")[0] for record in caplog.records] == ["model check failed", "models are looked for again"] * 2
    hand_over(served.redis, "1", random_model(1))
    model.refresh()
    assert model.current is not None
    model.close()
