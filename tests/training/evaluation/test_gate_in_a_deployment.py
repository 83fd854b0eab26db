"""Promotion, rollback and retraining ask the gate; a person need not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from bandit.errors import NoComparisonError, NotBetterError
from bandit.model.featurize import FEATURE_NAMES, FEATURE_VERSION, rebase
from bandit.model.linear_model import LinearModel, weight_count
from bandit.policy.logged_inputs import INPUTS
from bandit.policy.scores import Candidates, plan
from bandit.types import Prior, Rate, Sums
from tests.conftest import Deployment
from tests.strategies import NOW, exploring, linear_model
from tests.tables_made import KEYS
from training.evaluation.gate import evaluate, promote_if_better, roll_back_if_worse
from training.models.outcomes import OUTCOMES, outcomes_file, outcomes_writer
from training.models.promote import promote
from training.models.registry import ModelRegistry

ROWS, N = 6000, 4
GOOD = FEATURE_NAMES.index("action_scale")  # marks the clusters that earn


def model(taste: float, **manifest: object) -> LinearModel:
    """A model that adds `taste` to the score of the good clusters; it explores freely, so that logs can value others."""
    flat = np.zeros(weight_count(len(FEATURE_NAMES)))
    flat[GOOD] = -taste  # of the costs
    prior = Prior(rate=Rate(mean=0.3, strength=8.0))
    return linear_model(flat, prior, exploration=exploring(optimism=0.0, budget=0.5), **manifest)


def write_log(file: Path, by: LinearModel, version: str, rows: int = ROWS) -> None:
    """Outcomes of decisions that a model made: two queries of four clusters, of which two are good."""
    rng = np.random.default_rng(0)
    features = np.zeros((rows, N, len(FEATURE_NAMES)), np.float32)
    good = np.tile([True, True, False, False], (rows, 1))
    features[..., GOOD] = good
    zeros = {name: np.zeros((rows, N)) for name in INPUTS}
    caps, k = np.full((rows, N), 2.0), np.full(rows, 2.0)
    none = Sums(np.zeros((5, rows * N)))
    known = Candidates(
        actions=np.zeros(rows * N),
        importance=np.zeros(rows * N),
        evidence=none,
        features=rebase(features.reshape(rows * N, -1), none, (np.zeros(1), np.zeros(1)), np.zeros(rows * N, np.int64), by.prior),
        prior=by.prior,
        model=by,
        exploration=by.manifest.exploration,
        offsets=np.arange(rows + 1) * N,
    )
    quotas = plan("bandit", known, k, caps.ravel()).quotas.reshape(rows, N)
    draws = np.diff(np.ceil(quotas.cumsum(axis=1).round(9) - rng.random((rows, 1))), axis=1, prepend=0.0).astype(int)
    rewards = rng.binomial(draws, np.where(good, 0.5, 0.2)).astype(float)
    columns = {
        "decision_id": [str(number) for number in range(rows)],
        "user_id": [f"u{number % 500}" for number in range(rows)],
        "decided_at": NOW + 1 + np.arange(rows),
        "policy": ["bandit"] * rows,
        "model_version": [version] * rows,
        "arm": [""] * rows,
        "k": k.astype(int),
        "quotas": quotas,
        "caps": caps,
        "drawn": [np.flatnonzero(row) for row in draws],
        "draws": [row[row > 0] for row in draws],
        "shown": [row[row > 0] for row in draws],
        "rewards": [earned[row > 0] for earned, row in zip(rewards, draws, strict=True)],
        "rates": np.full((rows, N), 0.3),
        "features": features.reshape(rows, -1),
        **zeros,
        "totals": np.zeros((rows, len(INPUTS))),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with outcomes_writer(file, {}) as writer:
        writer.write_table(pa.table([pa.array(list(columns[field.name]), field.type) for field in OUTCOMES], OUTCOMES))


@pytest.fixture
def two(learning: Deployment) -> Deployment:
    """Version 1 likes what is good, version 2 what is not; neither serves yet."""
    registry = ModelRegistry(learning.settings)
    assert [registry.add(model(taste), {}) for taste in (0.2, -0.2)] == ["1", "2"]
    return learning


def test_the_first_model_serves_when_nothing_can_be_told_and_not_when_it_is_certainly_not_better(two: Deployment) -> None:
    assert promote_if_better(two.settings, version="2").version == "2"  # no log at all
    write_log(outcomes_file(two.settings), model(0.2), "")
    two.redis.delete(KEYS.champion)
    ModelRegistry(two.settings)._client.delete_registered_model_alias("query-rewards", "champion")
    with pytest.raises(NotBetterError, match="version 2 against logged: not better"):
        promote_if_better(two.settings, version="2")


def test_a_challenger_must_be_better_than_the_champion_unless_a_person_insists(two: Deployment) -> None:
    settings = two.settings
    promote(settings, version="1")
    with pytest.raises(NoComparisonError, match="cannot tell whether version 2 is better than 1"):
        promote_if_better(settings)  # no log to tell from
    write_log(outcomes_file(settings), model(0.2), "1")
    with pytest.raises(NotBetterError, match="version 2 against model 1: not better"):
        promote_if_better(settings)
    assert ModelRegistry(settings).champion() == "1"
    assert promote_if_better(settings, version="1").version == "1"  # the champion is handed over again without a question
    assert promote_if_better(settings, force=True).version == "2"
    write_log(outcomes_file(settings), model(-0.2), "2")
    assert evaluate(settings, version="1").verdict == "better"
    assert promote_if_better(settings, version="1").version == "1"


def test_a_champion_that_earns_less_than_its_predecessor_is_rolled_back(two: Deployment) -> None:
    settings = two.settings
    promote(settings, version="1")
    assert roll_back_if_worse(settings) is None  # no predecessor
    promote(settings, version="2")
    assert roll_back_if_worse(settings) is None  # no log
    write_log(outcomes_file(settings), model(-0.2), "2", rows=500)
    assert roll_back_if_worse(settings) is None  # too few decisions to tell
    write_log(outcomes_file(settings), model(-0.2), "1")
    assert roll_back_if_worse(settings) is None  # another model's decisions
    write_log(outcomes_file(settings), model(-0.2), "2")
    done = roll_back_if_worse(settings)
    assert done is not None
    assert (done.left, done.version) == ("2", "1")
    assert ModelRegistry(settings).champion() == "1"
    assert "above 0" in done.reasons[0]


def test_decisions_count_that_taught_neither_of_two_models(learning: Deployment) -> None:
    registry = ModelRegistry(learning.settings)
    for taught in (NOW + 1000, NOW + 4000):
        registry.add(model(0.2, trained_until=taught), {})
    write_log(outcomes_file(learning.settings), model(0.2), "")  # from NOW + 1 to NOW + 6000
    assert evaluate(learning.settings, version="1", against="2").decisions == 2000
    assert evaluate(learning.settings, version="2", against="1").decisions == 2000
    assert evaluate(learning.settings, version="1", against="logged").decisions == 5000
    assert evaluate(learning.settings, policy="uniform", against="2").decisions == 2000
    assert evaluate(learning.settings, policy="uniform", against="logged").decisions == 6000


def test_a_gate_that_is_off_asks_nothing(two: Deployment) -> None:
    settings = two.change(mode='"off"').settings
    promote(settings, version="1")
    write_log(outcomes_file(settings), model(0.2), "1")
    assert promote_if_better(settings).version == "2"
    write_log(outcomes_file(settings), model(-0.2), "2")
    assert roll_back_if_worse(settings) is None


def test_a_champion_of_another_feature_version_does_not_stop_the_next_model(learning: Deployment) -> None:
    registry = ModelRegistry(learning.settings)
    old = linear_model(np.zeros(weight_count(len(FEATURE_NAMES))), feature_version=FEATURE_VERSION + 1)
    assert [registry.add(old, {}), registry.add(model(0.2), {})] == ["1", "2"]
    registry.set_champion("1", None)
    assert promote_if_better(learning.settings).version == "2"
    assert roll_back_if_worse(learning.settings) is None
