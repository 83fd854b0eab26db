"""Numbers that others published or computed, reproduced: the digits example of Open Bandit Pipeline, and the Open Bandit sample."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from bandit.ope.diagnostics import audit_single_actions, diagnose
from bandit.ope.estimators import ESTIMATORS
from bandit.ope.estimators.batch import single_actions
from bandit.ope.gate import CANNOT_TELL, judge
from bandit.ope.intervals import Interval, confidence_sequence
from tests.open_bandit import ITEMS, TRUTH, log, shares
from tests.slates import normal_interval
from tests.strategies import thresholds


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_t1_the_digits_example_of_open_bandit_pipeline():
    features, labels = load_digits(return_X_y=True)
    x_train, x_eval, y_train, y_eval = train_test_split(features, labels, test_size=0.7, random_state=12345)
    logged = 0.8 * np.eye(10)[LogisticRegression(random_state=12345).fit(x_train, y_train).predict(x_eval)] + 0.2 / 10
    target = np.eye(10)[RandomForestClassifier(random_state=12345).fit(x_train, y_train).predict(x_eval)]
    rows = np.arange(len(y_eval))
    uniforms = np.random.RandomState(12345).uniform(size=len(y_eval))
    actions = (logged.cumsum(axis=1) > uniforms[:, None]).argmax(axis=1)
    batch = single_actions(logged[rows, actions], target[rows, actions], (actions == y_eval).astype(float))
    truth = target[rows, y_eval].mean()
    ips, snips = (ESTIMATORS[name].estimate(ESTIMATORS[name].observe(batch)) for name in ("ips", "snips"))
    assert truth == pytest.approx(0.9634340222575517, rel=1e-12)
    assert abs(ips / truth - 1.0) == pytest.approx(0.01827255896321327, rel=1e-9)
    assert snips == pytest.approx(0.9511278195, abs=1e-10)


@pytest.mark.parametrize("campaign", ["men", "women"])
def test_t2_random_logs_value_thompson_sampling_at_what_it_really_earned(campaign):
    """10,000 random rows; the truth is the click rate of the full data under that policy, 26 million rows."""
    with TRUTH.open() as file:
        rows = list(csv.DictReader(file))
    row = next(row for row in rows if row["campaign"] == campaign and row["behavior_policy"] == "bts")
    truth = float(row["ctr_full"])
    seen = log(campaign, "random")
    target = shares(campaign, "bts")[seen["position"], seen["item_id"]]
    batch = single_actions(seen["propensity_score"], target, seen["click"])
    interval = normal_interval(ESTIMATORS["ips"].observe(batch))
    assert len(batch) == 10_000
    assert interval.low < truth < interval.high


@pytest.mark.parametrize(
    ("campaign", "expected"),
    [
        ("men", {"ips": 0.301, "snips": 0.319, "ess": 656, "weight": 0.943, "largest": 178}),
        ("women", {"ips": 0.744, "snips": 0.237, "ess": 2, "weight": 3.13, "largest": 21_739}),
    ],
)
def test_t3_thompson_sampling_logs_cannot_value_the_uniform_policy_and_the_reasons_name_the_effective_sample_size(campaign, expected):
    seen = log(campaign, "bts")
    logged, uniform = seen["propensity_score"], np.full(10_000, 1.0 / ITEMS[campaign])
    batch = single_actions(logged, uniform, seen["click"])
    for name in ("ips", "snips"):
        assert 100.0 * ESTIMATORS[name].estimate(ESTIMATORS[name].observe(batch)) == pytest.approx(expected[name], abs=5e-4)
    known = diagnose(batch, logged[:, None], uniform[:, None])
    assert known.effective_sample_size == pytest.approx(expected["ess"], abs=0.5)
    assert known.mean_weight == pytest.approx(expected["weight"], abs=5e-3)
    assert known.largest_weight == pytest.approx(expected["largest"], abs=0.5)
    checked = audit_single_actions(logged, np.full(10_000, float(ITEMS[campaign])))
    state = ESTIMATORS["ips"].observe(batch)
    verdict = judge(thresholds(), known, checked, confidence_sequence(state, 0.0, 1e5), Interval(low=0.0, high=0.0))
    assert verdict.verdict == CANNOT_TELL
    assert any("effective sample size" in reason for reason in verdict.reasons)
