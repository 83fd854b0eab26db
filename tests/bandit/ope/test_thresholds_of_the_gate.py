"""Each threshold of the gate alone: at its value the log may speak, just past it the log cannot, everything else being fine."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from bandit.errors import InvalidValueError
from bandit.ope.diagnostics import Audit, Diagnostics
from bandit.ope.gate import BETTER, CANNOT_TELL, NOT_BETTER, Gate, Verdict, judge
from bandit.ope.intervals import Interval
from bandit.settings.sections import GateSettings
from tests.strategies import thresholds

FINE = Diagnostics(decisions=5000, draws=10_000.0, queries=10_000.0, weights=10_000.0, squares=10_000.0, largest_weight=5.0)
BINS = np.zeros(20)
TRUE = Audit(drawn=BINS, expected=BINS, variance=BINS, inverse=100.0, candidates=100.0, inverse_variance=4.0)
# No threshold but the one under test is near; those of the tests are sums of powers of two, so that nothing is rounded.
OPEN = thresholds(
    decisions=1,
    effective_sample=0.0,
    effective_share=0.0,
    mean_weight_error=1e9,
    largest_weight_share=1.0,
    unsupported_share=1.0,
    audit_p=0.0,
)


def verdict(gate: Gate, log: dict[str, Any], audit: dict[str, Any], low: float = 0.02, high: float = 0.04) -> Verdict:
    lift, absolute = Interval(low=low, high=high), Interval(low=low / 2.0, high=high / 2.0)
    return judge(gate, dataclasses.replace(FINE, **log), dataclasses.replace(TRUE, **audit), lift, absolute)


def one_bin(chi_squared: float) -> dict[str, Any]:
    """An audit whose statistic is this, on one degree of freedom."""
    first = np.eye(20)[0]
    return {"drawn": first * np.sqrt(chi_squared), "variance": first}


@pytest.mark.parametrize(
    ("threshold", "at", "past", "reason"),
    [
        ({"decisions": 4000}, {"decisions": 4000}, {"decisions": 3999}, "3,999 decisions, 4,000 are asked for"),
        (
            {"effective_sample": 2500.0},
            {"squares": 40_000.0},
            {"squares": 40_100.0},
            "effective sample size 2,494 of 10,000 draws, 2,500 are asked for",
        ),
        (
            {"effective_share": 0.25},
            {"squares": 40_000.0},
            {"squares": 40_100.0},
            "effective sample size 2,494 of 10,000 draws, 2,500 are asked for",
        ),
        ({"mean_weight_error": 0.125}, {"weights": 11_250.0}, {"weights": 11_260.0}, "mean weight 1.13, expected 1 within 0.125"),
        ({"mean_weight_error": 0.125}, {"weights": 8750.0}, {"weights": 8740.0}, "mean weight 0.874, expected 1 within 0.125"),
        ({"mean_weight_error": 1e9}, {}, {"queries": 0.0}, "mean weight nan"),
        (
            {"largest_weight_share": 0.25},
            {"largest_weight": 2500.0},
            {"largest_weight": 2501.0},
            "one draw carries 25% of the weight (2,501), 25% may",
        ),
        (
            {"unsupported_share": 0.25},
            {"unsupported_queries": 2500.0, "unsupported_decisions": 1000},
            {"unsupported_queries": 2510.0, "unsupported_decisions": 1000},
            "the target wants clusters that the log never had: 25.1% of its queries in 20.0% of the decisions",
        ),
    ],
)
def test_a_log_at_a_threshold_of_its_diagnostics_may_speak_and_past_it_cannot(threshold, at, past, reason):
    gate = dataclasses.replace(OPEN, **threshold)
    assert verdict(gate, at, {}).verdict == BETTER
    found = verdict(gate, past, {})
    assert found.verdict == CANNOT_TELL
    (said,) = found.reasons
    assert said.startswith(reason)
    if threshold.keys() != {"mean_weight_error"}:
        assert verdict(OPEN, past, {}).verdict == BETTER  # nothing else is wrong with it


def test_the_default_thresholds_are_those_that_the_documents_name():
    assert GateSettings().gate() == Gate(
        decisions=1000,
        effective_sample=1000.0,
        effective_share=0.1,
        mean_weight_error=0.1,
        largest_weight_share=0.05,
        unsupported_share=0.01,
        audit_p=1e-4,
        alpha=0.05,
        worthwhile_lift=0.01,
    )


def test_drawn_counts_may_be_as_unlikely_as_the_gate_says_and_no_more():
    gate = dataclasses.replace(OPEN, audit_p=1e-4)  # 15.137 is the quantile of chi-squared on one degree of freedom
    assert verdict(gate, {}, one_bin(15.13)).verdict == BETTER
    (said,) = verdict(gate, {}, one_bin(15.14)).reasons
    assert said.startswith("the log contradicts its propensities: drawn counts")
    assert said.endswith("chi-squared 15 on 1 degrees of freedom")
    chance = dataclasses.replace(TRUE, **one_bin(15.14)).chi_squared_p
    assert verdict(dataclasses.replace(OPEN, audit_p=chance), {}, one_bin(15.14)).verdict == BETTER
    assert verdict(dataclasses.replace(OPEN, audit_p=np.nextafter(chance, 1.0)), {}, one_bin(15.14)).verdict == CANNOT_TELL


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_the_sum_of_inverse_propensities_may_be_five_standard_deviations_off_and_no_more(sign):
    assert verdict(OPEN, {}, {"inverse": 100.0 + sign * 10.0}).verdict == BETTER  # a standard deviation is 2
    (said,) = verdict(OPEN, {}, {"inverse": 100.0 + sign * 10.1}).reasons
    assert f"{sign * 5.05:+.1f}"[:2] in said
    assert "of the number of candidates" in said


def test_a_log_without_decisions_says_that_alone():
    assert verdict(GateSettings().gate(), {"decisions": 0, "squares": 1e9}, {"inverse": 1e9}) == Verdict(
        verdict=CANNOT_TELL, reasons=["the log is empty: no decision can be used"]
    )


def test_every_doubt_is_named():
    worst = {"decisions": 3, "squares": 1e9, "weights": 9.0, "largest_weight": 9.0, "unsupported_queries": 1e4, "unsupported_decisions": 3}
    assert len(verdict(GateSettings().gate(), worst, one_bin(100.0) | {"inverse": 1e9}).reasons) == 7


@pytest.mark.parametrize(
    ("low", "high", "expected", "reason"),
    [
        (np.nextafter(0.0, 1.0), 0.5, BETTER, "above 0 at 95%"),
        (0.0, 0.5, CANNOT_TELL, "5,000 decisions do not tell it from 0"),
        (-0.5, 0.25, CANNOT_TELL, "do not tell it from 0"),
        (-0.5, np.nextafter(0.25, 0.0), NOT_BETTER, "below 25.00%, the least that is worthwhile"),
        (-0.5, 0.0, NOT_BETTER, "below 25.00%"),
        (-0.5, np.nextafter(0.0, -1.0), NOT_BETTER, "below 0"),
    ],
)
def test_the_ends_of_the_lift_decide_at_0_and_at_the_least_that_is_worthwhile(low, high, expected, reason):
    found = verdict(dataclasses.replace(OPEN, worthwhile_lift=0.25), {}, {}, low, high)
    assert found.verdict == expected
    assert reason in found.reasons[0]


def test_the_reason_names_the_relative_and_the_absolute_gain():
    (said,) = verdict(OPEN, {}, {}, 0.02, 0.04).reasons
    assert said.startswith("the lift is +2.00% to +4.00% (+0.01 to +0.02 reward per decision)")


THRESHOLDS = ("decisions", "effective_sample", "effective_share", "mean_weight_error", "largest_weight_share", "unsupported_share")


@pytest.mark.parametrize("name", THRESHOLDS)
def test_a_threshold_may_be_nothing_and_never_less(name):
    dataclasses.replace(OPEN, **{name: 0})
    for wrong in (-1e-9, np.nan):
        with pytest.raises(InvalidValueError, match=name) as caught:
            dataclasses.replace(OPEN, **{name: wrong})
        assert caught.value.received is wrong


def test_the_chance_of_error_lies_between_0_and_1():
    for wrong in (0.0, 1.0, np.nan):
        with pytest.raises(InvalidValueError, match="alpha"):
            dataclasses.replace(OPEN, alpha=wrong)
