"""What a model may learn from while others choose: nothing that is only logged, nothing of an arm that it does not serve."""

from __future__ import annotations

import pytest

from tests.conftest import Deployment
from tests.tables_made import MINUTE, NOW, decision, feedback, write_decisions, write_feedback
from training.models.join import join
from training.models.train import train

DAYS_AGO = NOW - 2 * 24 * 60 * MINUTE
ARMS = """
[experiment]
salt = "s"
learn_from = "{learn_from}"
[experiment.arms.control]
share = 0.5
policy = "action_count"
[experiment.arms.treatment]
share = 0.5
policy = "bandit"
"""


@pytest.fixture
def learning(learning: Deployment) -> Deployment:
    """Without a gate that rows would be held out for."""
    return learning.change(mode='"off"')


def log(deployment: Deployment) -> None:
    kinds = [("control", "online"), ("treatment", "online"), ("", "online"), ("", "log_only"), ("", "apprentice")]
    made = [decision(number, at=DAYS_AGO + number, arm=arm, mode=mode) for number, (arm, mode) in enumerate(kinds * 50)]
    events = [feedback(f"{one.seed}", at=one.decided_at + MINUTE, decision_id=one.decision_id) for one in made]
    write_decisions(deployment.settings, made)
    write_feedback(deployment.settings, events)
    join(deployment.settings, as_of=NOW)


def test_rows_of_an_arm_without_the_model_and_rows_that_are_only_logged_are_not_learned_from(learning: Deployment) -> None:
    log(learning)
    assert train(learning.settings, as_of=NOW).rows == 200  # no experiment: all but log_only
    assert train(learning.change(ARMS.format(learn_from="bandit")).settings, as_of=NOW).rows == 150


def test_all_arms_teach_when_the_settings_say_so(learning: Deployment) -> None:
    log(learning)
    assert train(learning.change(ARMS.format(learn_from="all")).settings, as_of=NOW).rows == 200
