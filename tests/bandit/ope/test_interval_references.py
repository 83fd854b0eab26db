"""Each interval and each estimator against its paper's formula, computed here in another way."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats
from scipy.special import zeta

from bandit.ope.estimators import ESTIMATORS
from bandit.ope.estimators.batch import Batch
from bandit.ope.estimators.state import state_of
from bandit.ope.estimators.thresholds import THRESHOLDS
from bandit.ope.intervals import UNKNOWN, Interval, confidence_sequence, percentiles, resample
from bandit.ope.lift import absolute_lift, differences, relative_lift

TERMS = np.random.default_rng(0).choice([-0.5, 0.0, 0.25, 1.5], (300, 1), p=[0.1, 0.5, 0.3, 0.1])
USERS = np.arange(300) % 41


def boundary(v: float, c: float, alpha: float, eta: float = 2.0, s: float = 1.4) -> float:
    """Howard, Ramdas, McAuliffe and Sekhon 2021, equation 10: the polynomial stitched boundary, with m = c^2."""
    v = max(v, c**2)
    level = s * np.log(np.log(eta * v / c**2)) + np.log(zeta(s) / (alpha * np.log(eta) ** s))
    k1, k2 = (eta**0.25 + eta**-0.25) / np.sqrt(2.0), (np.sqrt(eta) + 1.0) / 2.0
    return np.sqrt(k1**2 * v * level + k2**2 * c**2 * level**2) + k2 * c * level


@pytest.mark.parametrize("alpha", [0.05, 0.2])
@pytest.mark.parametrize(
    ("low", "high", "scales"),
    [
        (-0.5, 1.5, (0.5, 1.5)),
        (-2.0, 9.0, (2.0, 9.0)),
        (0.0, 30.0, (0.3, 30.0)),  # a side without range starts at a hundredth of the whole
        (-50.0, 0.0, (50.0, 0.5)),
    ],
)
def test_each_end_of_the_confidence_sequence_is_the_stitched_boundary_of_its_side_at_half_of_alpha(low, high, scales, alpha):
    found = confidence_sequence(state_of(TERMS, USERS), low, high, alpha)
    mean, squares, n = TERMS.mean(), (TERMS**2).sum(), len(TERMS)
    assert found.low == pytest.approx(mean - boundary(squares, scales[0], alpha / 2.0) / n, rel=1e-12)
    assert found.high == pytest.approx(mean + boundary(squares, scales[1], alpha / 2.0) / n, rel=1e-12)


def test_the_confidence_sequence_is_of_one_chance_in_twenty_unless_said_otherwise():
    state = state_of(TERMS, USERS)
    assert confidence_sequence(state, -0.5, 1.5) == confidence_sequence(state, -0.5, 1.5, 0.05)


def test_the_range_of_a_lift_is_what_was_seen_with_0():
    state = state_of(TERMS, USERS)
    assert absolute_lift(state, 0.1) == confidence_sequence(state, -0.5, 1.5, 0.1)
    above = state_of(np.abs(TERMS) + 1.0, USERS)
    assert absolute_lift(above, 0.1) == confidence_sequence(above, 0.0, 2.5, 0.1)
    assert absolute_lift(state_of(np.zeros((5, 1)), USERS[:5]), 0.1) == Interval(low=0.0, high=0.0)
    assert absolute_lift(state_of(TERMS[:0], USERS[:0]), 0.1) == UNKNOWN


def test_a_relative_lift_is_the_share_of_the_size_of_what_the_baseline_earns():
    for baseline in (0.5, -0.5):
        assert relative_lift(Interval(low=-0.1, high=0.2), baseline) == Interval(low=-0.2, high=0.4)
    assert relative_lift(Interval(low=-0.1, high=0.2), 0.0) == UNKNOWN
    assert relative_lift(Interval(low=0.0, high=0.2), 0.0) == UNKNOWN
    assert relative_lift(Interval(low=0.0, high=0.0), 0.0) == Interval(low=0.0, high=0.0)


def test_percentiles_cut_half_of_alpha_from_either_side():
    ips = ESTIMATORS["ips"]
    state = state_of(np.arange(41.0)[:, None], np.arange(41) * 7)  # one decision a user, worth 0 to 40
    alone = np.eye(41) @ np.eye(len(state.decisions))[np.arange(41) * 7]  # resamples of one user each
    assert percentiles(ips, state, alone, 0.1) == Interval(low=2.0, high=38.0)
    assert percentiles(ips, state, alone) == Interval(low=1.0, high=39.0)


def test_resamples_draw_as_many_users_as_there_are_and_only_those():
    state = state_of(TERMS, USERS * 3)
    drawn = resample(state, np.random.default_rng(0), 500)
    assert drawn.shape == (500, len(state.decisions))
    assert (drawn.sum(axis=1) == 41).all()
    assert set(np.flatnonzero(drawn.any(axis=0))) == set(range(0, 123, 3))
    np.testing.assert_allclose(drawn[:, :123:3].mean(axis=0), 1.0, atol=0.2)
    assert resample(state_of(TERMS[:0], USERS[:0]), np.random.default_rng(0), 3).sum() == 0


def test_the_bootstraps_width_is_that_of_a_mean_of_users():
    """Of users whose decisions are alike in number: 2 z standard deviations of the users' sums, by root n."""
    terms = np.random.default_rng(1).normal(1.0, 1.0, (4000, 1))
    users = np.arange(4000) // 4
    state = state_of(terms, users)
    interval = percentiles(ESTIMATORS["ips"], state, resample(state, np.random.default_rng(2), 4000))
    deviation = terms.reshape(1000, 4).mean(axis=1).std(ddof=1) / np.sqrt(1000)
    assert interval.high - interval.low == pytest.approx(2.0 * stats.norm.ppf(0.975) * deviation, rel=0.05)


def log(seed: int = 0, decisions: int = 200, spread: float = 1.0) -> Batch:
    """One to three drawn clusters a decision, with heavy weights, several draws, and a model of the reward that is off."""
    rng = np.random.default_rng(seed)
    row = np.repeat(np.arange(decisions), rng.integers(1, 4, decisions))
    draws = rng.integers(1, 4, len(row)).astype(float)
    return Batch(
        queries=rng.uniform(1.0, 4.0, decisions),
        users=rng.integers(0, 20, decisions),
        row=row,
        weight=rng.lognormal(0.0, spread, len(row)),
        draws=draws,
        reward=draws * rng.uniform(-0.2, 1.0, len(row)),
        direct=rng.uniform(0.0, 2.0, decisions),
        predicted=rng.uniform(0.0, 1.0, len(row)),
    )


def by_decision(batch: Batch) -> list[tuple[int, list[tuple[float, float, float, float]]]]:
    """Decisions, each with the (weight, draws, reward, predicted) of its drawn clusters."""
    cells = list(zip(batch.row.tolist(), batch.weight, batch.draws, batch.reward, batch.predicted, strict=True))
    return [(decision, [cell[1:] for cell in cells if cell[0] == decision]) for decision in range(len(batch))]


def references(batch: Batch) -> dict[str, float]:
    """Values by the formulas of the papers, decision by decision."""
    n, rows = len(batch), by_decision(batch)
    queries, direct = batch.queries.sum(), batch.direct.sum()
    earned = sum(w * r for _, cells in rows for w, _, r, _ in cells)
    drawn = sum(w * d for _, cells in rows for w, d, _, _ in cells)
    surprise = sum(w * (r - d * p) for _, cells in rows for w, d, r, p in cells)
    slates = sum((1.0 + sum(d * (w - 1.0) for w, d, _, _ in cells)) * sum(r for _, _, r, _ in cells) for _, cells in rows)
    return {
        "dm": direct / n,
        "ips": earned / n,
        "snips": earned / drawn * queries / n,
        "dr": (direct + surprise) / n,
        "sndr": (direct + surprise / drawn * queries) / n,
        "pseudo_inverse": slates / n,
    }


@pytest.mark.parametrize("name", sorted(references(log())))
def test_an_estimator_has_the_value_of_its_formula(name):
    batch = log()
    estimator = ESTIMATORS[name]
    assert estimator.estimate(estimator.observe(batch)) == pytest.approx(references(batch)[name], rel=1e-12)


@pytest.mark.parametrize("name", ["ips", "dr", "pseudo_inverse"])
def test_a_states_products_give_the_variance_of_its_decisions_and_its_users_their_sums(name):
    batch, estimator = log(), ESTIMATORS[name]
    state = estimator.observe(batch)
    alone = np.array([references(one(batch, decision))[name] for decision in range(len(batch))])
    assert state.products[0, 0] / len(batch) - (state.totals[0] / len(batch)) ** 2 == pytest.approx(alone.var(), rel=1e-9)
    assert (state.least[0], state.greatest[0]) == pytest.approx((alone.min(), alone.max()), rel=1e-12)
    for user in range(20):
        assert state.by_user[user, 0] == pytest.approx(alone[batch.users == user].sum(), rel=1e-12)
        assert state.decisions[user] == (batch.users == user).sum()


def one(batch: Batch, decision: int) -> Batch:
    """The log of one decision."""
    cells = {name: getattr(batch, name)[batch.row == decision] for name in ("weight", "draws", "reward", "predicted")}
    whole = {name: getattr(batch, name)[decision : decision + 1] for name in ("queries", "users", "direct")}
    return Batch(row=np.zeros(len(cells["weight"]), np.int64), **cells, **whole)


def thresholded(name: str, batch: Batch, threshold: float) -> tuple[np.ndarray, float]:
    """Each decision's term under a threshold, and the weighted draws per decision that the threshold took away."""
    terms, lost = [], 0.0
    for decision, cells in by_decision(batch):
        term = batch.direct[decision] if name == "switch" else 0.0
        for w, d, r, p in cells:
            if name == "switch":
                term += w * (r - d * p) if w <= threshold else 0.0
                lost += w * d if w > threshold else 0.0
            else:
                term += min(w, threshold) * r
                lost += (w - min(w, threshold)) * d
        terms.append(term)
    return np.array(terms), lost / len(batch)


@pytest.mark.parametrize("name", ["clipped", "switch"])
def test_weights_are_cut_where_the_variance_of_the_mean_and_the_squared_bound_of_the_bias_are_least(name):
    """Wang, Agarwal and Dudik 2017, section 3.1; in worlds that choose differently, and not as without a part."""
    estimator, chosen, others = ESTIMATORS[name], [], []
    for seed, spread in enumerate([0.3, 1.0, 1.5, 2.0, 2.5, 3.0]):
        batch = log(seed, 20, spread)
        largest = np.abs(batch.reward / batch.draws).max()
        cut = [thresholded(name, batch, threshold) for threshold in THRESHOLDS]
        variance, bias = np.array([terms.var() / len(terms) for terms, _ in cut]), np.array([largest * lost for _, lost in cut])
        best = int(np.argmin(variance + bias**2))
        state = estimator.observe(batch)
        assert estimator.choose(state) == best
        assert estimator.estimate(state) == pytest.approx(cut[best][0].mean(), rel=1e-9)
        chosen.append(best)
        others.append([int(np.argmin(other)) for other in (variance, bias, variance + bias)])
    assert len(set(chosen)) > 2
    without = dict(zip(("bias", "variance", "square"), zip(*others, strict=True), strict=True))
    for part in without if name == "clipped" else ("bias", "square"):  # beyond a threshold, switch has hardly any variance left
        assert list(without[part]) != chosen, part


def test_thresholds_are_the_powers_of_two_to_4096_and_a_weight_at_one_is_not_cut():
    assert THRESHOLDS.tolist() == [2.0**exponent for exponent in range(13)]
    rng = np.random.default_rng(0)
    at = dataclasses.replace(log(), weight=2.0 ** rng.integers(0, 4, len(log().row)))
    assert ESTIMATORS["switch"].choose(ESTIMATORS["switch"].observe(at)) <= 3
    for name in ("clipped", "switch"):
        terms = ESTIMATORS[name].terms(at)
        np.testing.assert_allclose(terms[:, 3], terms[:, 12], rtol=1e-12)
        assert (terms[:, 13 + 3] == 0.0).all()
        assert (terms[:, 13 + 2] > 0.0).any()


def test_one_decision_cannot_choose_a_threshold_so_that_none_is_cut():
    for name in ("clipped", "switch"):
        batch = one(log(), 3)
        assert ESTIMATORS[name].choose(ESTIMATORS[name].observe(batch)) == 12


def test_a_difference_is_of_the_same_decisions_and_needs_an_estimator_that_is_a_mean():
    target, baseline = log(0), dataclasses.replace(log(0), weight=np.ones(len(log(0).row)), queries=np.full(200, 2.0))
    state = differences(ESTIMATORS["dr"], target, baseline)
    wanted = [ESTIMATORS["dr"].estimate(ESTIMATORS["dr"].observe(part)) for part in (target, baseline)]
    assert state.totals[0] / state.count == pytest.approx(wanted[0] - wanted[1], rel=1e-12)
    for name in ("snips", "clipped"):
        with pytest.raises(ValueError, match="a mean of one term a decision"):
            differences(ESTIMATORS[name], target, baseline)
