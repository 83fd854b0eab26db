"""A model that has learned noise is not promoted on the noise that it has learned."""

from __future__ import annotations

import numpy as np
import pytest

from bandit.model.featurize import FEATURE_NAMES
from bandit.model.learning import Examples, learn
from bandit.ope.diagnostics import audit, diagnose
from bandit.ope.estimators import ESTIMATORS
from bandit.ope.estimators.batch import Batch
from bandit.ope.gate import BETTER, judge
from bandit.ope.lift import absolute_lift, differences, relative_lift
from bandit.policy.quotas import budgeted
from bandit.types import Prior, Rate
from tests.strategies import exploring, learner, thresholds
from training.models.train import hold_out

DECISIONS, CLUSTERS, QUERIES, RATE = 4000, 12, 3, 0.3


def retrain(seed: int, held_out: float) -> str:
    """The verdict on a model of features that say nothing: all clusters earn the same, and are drawn alike."""
    rng = np.random.default_rng([3, seed])
    features = rng.normal(0.0, 0.5, (DECISIONS, CLUSTERS, len(FEATURE_NAMES))).astype(np.float32)
    features[..., FEATURE_NAMES.index("shrunk_rate")] = RATE
    logged = np.full((DECISIONS, CLUSTERS), QUERIES / CLUSTERS)
    draws = np.diff(np.ceil(logged.cumsum(axis=1).round(9) - rng.random((DECISIONS, 1))), axis=1, prepend=0.0)
    row, place = np.nonzero(draws)
    reward = rng.binomial(4, RATE, len(row)).astype(float)
    examples = Examples(features=features[row, place], reward=reward, impressions=np.full(len(row), 4.0), decided_at=row.astype(np.int64))
    learned = hold_out(examples, held_out)[0] if held_out else examples
    model = learn(learned, Prior(rate=Rate(mean=RATE, strength=8.0)), exploring(), learner())
    first = int(learned.decided_at[-1]) + 1 if held_out else 0
    judged, here = np.arange(first, DECISIONS), row >= first
    budgets = np.full(CLUSTERS, 0.005 * QUERIES * RATE / CLUSTERS)
    scores = [RATE + np.clip(model.predict(features[one]), -0.3, 0.3) for one in judged]
    wanted = np.array([budgeted(score, budgets, QUERIES, np.ones(CLUSTERS)) for score in scores])

    def batch(quotas: np.ndarray) -> Batch:
        return Batch(
            queries=quotas.sum(axis=1),
            users=judged % 500,
            row=row[here] - first,
            weight=quotas[row[here] - first, place[here]] / logged[row[here], place[here]],
            draws=np.ones(here.sum()),
            reward=reward[here],
            direct=quotas.sum(axis=1) * 4 * RATE,
            predicted=np.full(here.sum(), 4 * RATE),
        )

    target, baseline, gate = batch(wanted), batch(logged[judged]), thresholds(decisions=500, effective_sample=500.0)
    absolute = absolute_lift(differences(ESTIMATORS["dr"], target, baseline), gate.alpha)
    lift = relative_lift(absolute, ESTIMATORS["dr"].estimate(ESTIMATORS["dr"].observe(baseline)))
    checked = audit(logged[judged], draws[judged])
    return judge(gate, diagnose(target, logged[judged], wanted), checked, lift, absolute).verdict


@pytest.mark.parametrize(("held_out", "promoted"), [(0.0, range(5, 7)), (0.2, range(1))], ids=["on its own rows", "on the newest rows"])
def test_noise_is_believed_on_the_rows_that_taught_it_and_not_on_others(held_out: float, promoted: range) -> None:
    assert sum(retrain(seed, held_out) == BETTER for seed in range(6)) in promoted
