"""The rights that the guide lists are enough, and none of them is too many."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import redis

from bandit.errors import DependencyUnavailableError
from serving.feedback_log import FeedbackLog, Recorded
from tests.served_world import Served, copied, hand_over
from tests.strategies import random_model
from tests.tables_made import feedback
from training.local_redis import local_redis

GUIDE = Path(__file__).parents[3] / "docs" / "guide.md"
RIGHTS = dict(re.findall(r"^ACL SETUSER (\w+) (.*)$", GUIDE.read_text(), re.MULTILINE))


def selects(world: Served) -> bool:
    try:
        with world.open("bandit", deadline_ms=2000.0) as selector:
            chosen = selector.select("u0", 4)
            return chosen.logged and chosen.model_version == "7"
    except DependencyUnavailableError:
        return False


def records(world: Served) -> bool:
    event = feedback("e1", at=time.time_ns() // 1000, user_id="u0")
    try:
        with FeedbackLog.open(world.settings_file()) as log:
            return log.record([event]) == Recorded(accepted=1, durable=0, rejected=[])
    except DependencyUnavailableError:
        return False


@pytest.mark.parametrize(("user", "works"), [("select", selects), ("record", records)])
def test_the_rights_of_the_guide_are_enough_and_none_is_too_many(served: Served, user: str, works) -> None:  # type: ignore[no-untyped-def]
    with local_redis() as url:
        world = url.rsplit("/", 1)[0].replace("redis://", f"redis://{user}:password@") + "/3"
        served_there = copied(served, f"{url.rsplit('/', 1)[0]}/3", world)
        admin = redis.Redis.from_url(f"{url.rsplit('/', 1)[0]}/3")
        hand_over(admin, "7", random_model(1))
        rights = RIGHTS[user].split()
        admin.execute_command("ACL", "SETUSER", user, *rights)
        assert works(served_there)
        for right in rights:
            if right.startswith(("+", "~")):
                admin.execute_command("ACL", "SETUSER", user, "reset", *(each for each in rights if each != right))
                assert not works(served_there), right


def test_every_process_of_the_guide_is_tested() -> None:
    assert sorted(RIGHTS) == ["record", "select"]
