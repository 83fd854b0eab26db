"""The gate's verdicts and their reasons; and how often it is wrong, over simulated retrains."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from bandit.errors import InvalidValueError
from bandit.ope.diagnostics import Audit, Diagnostics, audit, chi_squared_tail, diagnose
from bandit.ope.estimators import ESTIMATORS
from bandit.ope.estimators.batch import Batch
from bandit.ope.gate import BETTER, CANNOT_TELL, NOT_BETTER, Verdict, judge
from bandit.ope.intervals import Interval
from bandit.ope.lift import absolute_lift, differences, relative_lift
from tests.strategies import thresholds

FINE = Diagnostics(decisions=5000, draws=10_000.0, queries=10_000.0, weights=10_000.0, squares=12_000.0, largest_weight=5.0)
NOTHING = np.zeros(20)
TRUE = Audit(drawn=NOTHING, expected=NOTHING, variance=NOTHING, inverse=100.0, candidates=100.0, inverse_variance=1.0)


def verdict(low, high, found=FINE, checked=TRUE, notes=()):
    lift = Interval(low=low, high=high)
    return judge(thresholds(), found, checked, lift, lift, notes)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.01, 0.05, BETTER), (-0.05, -0.01, NOT_BETTER), (-0.02, 0.005, NOT_BETTER), (-0.02, 0.05, CANNOT_TELL), (0.0, 0.0, NOT_BETTER)],
)
def test_the_lifts_interval_decides_when_nothing_is_wrong_with_the_log(low, high, expected):
    found = verdict(low, high)
    assert found.verdict == expected
    assert found.reasons


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"decisions": 0}, "empty"),
        ({"decisions": 999}, "999 decisions"),
        ({"squares": 1e6}, "effective sample size 100 of 10,000"),
        ({"weights": 12_000.0, "squares": 15_000.0}, "mean weight 1.2"),
        ({"largest_weight": 900.0}, "one draw carries 9% of the weight"),
        ({"unsupported_queries": 500.0, "unsupported_decisions": 400}, "5.0% of its queries in 8.0% of the decisions"),
    ],
)
def test_a_log_that_means_little_tells_nothing_however_large_the_lift(changes, text):
    found = verdict(0.5, 0.6, dataclasses.replace(FINE, **changes))
    assert found.verdict == CANNOT_TELL
    assert any(text in reason for reason in found.reasons)


def test_a_log_that_contradicts_its_propensities_tells_nothing():
    wrong = dataclasses.replace(TRUE, drawn=NOTHING + 10.0, variance=NOTHING + 1.0)
    assert "drawn counts do not follow the quotas" in verdict(0.5, 0.6, checked=wrong).reasons[0]
    assert "1/propensity" in verdict(0.5, 0.6, checked=dataclasses.replace(TRUE, inverse=200.0)).reasons[0]
    assert verdict(0.5, 0.6, notes=["something is off"]) == Verdict(verdict=CANNOT_TELL, reasons=["something is off"])


def test_thresholds_that_make_no_sense_are_refused():
    for name, value in (("alpha", 0.0), ("alpha", np.nan), ("decisions", -1), ("effective_share", np.nan)):
        with pytest.raises(InvalidValueError, match=name):
            thresholds(**{name: value})


def test_the_tail_of_chi_squared_is_scipys():
    from scipy.stats import chi2  # noqa: PLC0415

    for degrees in (1, 2, 3, 4, 9, 20):
        for value in (0.1, 1.0, 5.0, 40.0):
            assert chi_squared_tail(value, degrees) == pytest.approx(chi2.sf(value, degrees), rel=1e-9)
    assert chi_squared_tail(3.0, 0) == chi_squared_tail(0.0, 3) == 1.0


def drawn_from(quotas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Systematic draws of many decisions at once, one uniform number each; quotas (R, n) sum to whole numbers."""
    return np.diff(np.ceil(quotas.cumsum(axis=1).round(9) - rng.random((len(quotas), 1))), axis=1, prepend=0.0)


def test_the_audit_believes_a_true_log_and_not_one_drawn_from_other_quotas():
    rng = np.random.default_rng(0)
    weights, others = rng.gamma(2.0, 1.0, (20_000, 6)), rng.gamma(2.0, 1.0, (20_000, 6))
    quotas, other = (2.0 * w / w.sum(axis=1, keepdims=True) for w in (weights, others))
    true = audit(quotas, drawn_from(quotas, rng))
    assert true.chi_squared_p > 0.01
    assert abs(true.inverse_z) < 3.0
    assert true.inverse_ratio == pytest.approx(1.0, abs=0.02)
    false = audit(quotas, drawn_from(other, rng))
    assert false.chi_squared_p < 1e-6
    half = audit(quotas[:7000], drawn_from(quotas[:7000], rng)) + audit(quotas[7000:], drawn_from(quotas[7000:], rng))
    assert half.expected.sum() == pytest.approx(true.expected.sum())


# A retrain: contexts of 12 clusters whose worth differs; the logging policy draws 3 by its quotas, the candidate has others.
CONTEXTS, CLUSTERS, QUERIES = 50, 12, 3


def world(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Reward rates and the champion's quotas of each context."""
    rates = rng.beta(2.0, 5.0, (CONTEXTS, CLUSTERS))
    weights = np.exp(2.0 * rates + rng.normal(0.0, 0.4, rates.shape))
    return rates, np.minimum(QUERIES * weights / weights.sum(axis=1, keepdims=True), 1.9)


def shifted(rates: np.ndarray, quotas: np.ndarray, lift: float) -> np.ndarray:
    """Quotas that earn `lift` more than these: some of each context's draws moved between its better and its worse clusters."""
    better = rates >= np.median(rates, axis=1, keepdims=True)
    up = np.where(better, quotas, 0.0)
    down = quotas - up
    direction = up / up.sum(axis=1, keepdims=True) - down / down.sum(axis=1, keepdims=True)
    scale = lift * (quotas * rates).sum() / (direction * rates).sum()
    moved = quotas + scale * direction
    assert (moved > 0.0).all()
    return moved


def even(rates: np.ndarray, quotas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Other quotas that earn exactly the same: a random move within each context, made level by a second one."""
    noise = quotas * rng.normal(0.0, 0.15, quotas.shape).clip(-0.4, 0.4)
    noise -= quotas * (noise.sum(axis=1) / quotas.sum(axis=1))[:, None]
    moved = quotas + noise
    return shifted(rates, moved, (quotas * rates).sum() / (moved * rates).sum() - 1.0)


def retrain(rates, champion, candidate, decisions: int, rng: np.random.Generator) -> str:
    """The verdict on a candidate, from a log of the champion's."""
    context = rng.integers(0, CONTEXTS, decisions)
    logged, wanted = champion[context], candidate[context]
    draws = drawn_from(logged, rng)
    row, place = np.nonzero(draws > 0.5)
    count = draws[row, place].round()
    rate = rates[context[row], place]
    guess = 0.8 * rates.mean()  # a poor model of the reward: no context, and too low

    def batch(quotas: np.ndarray) -> Batch:
        return Batch(
            queries=quotas.sum(axis=1),
            users=context,  # the gate's interval does not look at users
            row=row,
            weight=quotas[row, place] / logged[row, place],
            draws=count,
            reward=rng_rewards,
            direct=quotas.sum(axis=1) * guess,
            predicted=np.full(len(row), guess),
        )

    rng_rewards = rng.binomial(count.astype(np.int64), rate).astype(float)
    target, baseline = batch(wanted), batch(logged)
    state, gate = differences(ESTIMATORS["dr"], target, baseline), thresholds()
    absolute = absolute_lift(state, gate.alpha)
    value = ESTIMATORS["dr"].estimate(ESTIMATORS["dr"].observe(baseline))
    lift = relative_lift(absolute, value)
    return judge(gate, diagnose(target, logged, wanted), audit(logged, draws), lift, absolute).verdict


def test_fewer_than_one_in_twenty_of_200_retrains_promote_a_candidate_that_is_equal_or_worse():
    promoted = 0
    for seed in range(200):
        rng = np.random.default_rng([7, seed])
        rates, champion = world(rng)
        candidate = even(rates, champion, rng) if seed % 2 else shifted(rates, champion, -0.02)
        promoted += retrain(rates, champion, candidate, 10_000, rng) == BETTER
    assert promoted / 200 < 0.05


def test_four_in_five_candidates_that_are_five_per_cent_better_are_promoted_on_50_000_decisions():
    promoted = 0
    for seed in range(40):
        rng = np.random.default_rng([8, seed])
        rates, champion = world(rng)
        promoted += retrain(rates, champion, shifted(rates, champion, 0.05), 50_000, rng) == BETTER
    assert promoted / 40 >= 0.8


def test_a_candidate_that_is_five_per_cent_worse_is_found_not_better():
    rng = np.random.default_rng(9)
    rates, champion = world(rng)
    assert retrain(rates, champion, shifted(rates, champion, -0.05), 50_000, rng) == NOT_BETTER
