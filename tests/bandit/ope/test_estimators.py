"""Laws of every estimator: halves merge into the whole, order does not matter, and exact enumeration gives exact means."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from estimators.bandits import gaussian as vw_gaussian
from estimators.bandits import ips as vw_ips
from estimators.bandits import snips as vw_snips
from estimators.slates import pseudo_inverse as vw_pseudo_inverse

from bandit.errors import InvalidPropensityError, InvalidValueError
from bandit.ope.estimators import ESTIMATORS
from bandit.ope.estimators.batch import BUCKETS, Batch, refuse_bad_propensities, single_actions
from bandit.ope.intervals import UNKNOWN, confidence_sequence, percentiles, resample
from tests.slates import every_sequence, normal_interval

every_estimator = pytest.mark.parametrize("name", sorted(ESTIMATORS))
UNBIASED = ("ips", "dr", "pseudo_inverse")


def some(decisions: int = 400, seed: int = 0, n: int = 6) -> Batch:
    """A log of one to three drawn clusters a decision."""
    rng = np.random.default_rng(seed)
    row = np.repeat(np.arange(decisions), rng.integers(1, 4, decisions))
    logged, target = rng.dirichlet(np.ones(n), len(row)), rng.dirichlet(np.ones(n), len(row))
    draws = rng.integers(1, 3, len(row)).astype(float)
    return Batch(
        queries=np.bincount(row, draws, decisions),
        users=rng.integers(0, 50, decisions),
        row=row,
        weight=target[:, 0] / logged[:, 0],
        draws=draws,
        reward=draws * rng.random(len(row)),
        direct=rng.random(decisions),
        predicted=rng.random(len(row)),
    )


def part(batch: Batch, decisions: np.ndarray) -> Batch:
    kept = np.isin(batch.row, decisions)
    place = np.full(len(batch), -1)
    place[decisions] = np.arange(len(decisions))
    order = np.argsort(place[batch.row[kept]], kind="stable")
    cells = {name: getattr(batch, name)[kept][order] for name in ("weight", "draws", "reward", "predicted")}
    whole = {name: getattr(batch, name)[decisions] for name in ("queries", "users", "direct")}
    return Batch(row=place[batch.row[kept]][order], **cells, **whole)


def test_eight_estimators_are_known_each_by_its_own_name():
    assert len(ESTIMATORS) == 8
    assert {name: estimator.name for name, estimator in ESTIMATORS.items()} == {name: name for name in ESTIMATORS}


@every_estimator
def test_halves_in_any_order_merge_into_the_whole(name):
    estimator, batch = ESTIMATORS[name], some()
    whole = estimator.observe(batch)
    mixed = np.random.default_rng(1).permutation(len(batch))
    left, middle, right = (estimator.observe(part(batch, rows)) for rows in (mixed[:100], mixed[100:101], mixed[101:]))
    for merged in (left + middle + right, right + (left + middle), whole + estimator.empty()):
        for field in dataclasses.fields(whole):
            np.testing.assert_allclose(getattr(merged, field.name), getattr(whole, field.name), rtol=1e-9, atol=1e-9)
        assert estimator.estimate(merged) == pytest.approx(estimator.estimate(whole), rel=1e-12)
    with pytest.raises(InvalidValueError):
        whole + dataclasses.replace(whole, totals=np.zeros(9))


@every_estimator
def test_an_estimator_of_nothing_says_nan_and_never_a_number(name):
    estimator = ESTIMATORS[name]
    assert np.isnan(estimator.estimate(estimator.empty()))
    assert percentiles(estimator, estimator.empty(), resample(estimator.empty(), np.random.default_rng(0))) == UNKNOWN


@every_estimator
def test_the_logging_policy_is_valued_at_what_it_earned(name):
    """With every weight 1, and a model that is right on average, all of them are the mean reward."""
    batch = some()
    rate = batch.reward.sum() / batch.draws.sum()
    batch = dataclasses.replace(batch, weight=np.ones(len(batch.row)), direct=batch.queries * rate, predicted=np.full(len(batch.row), rate))
    estimator = ESTIMATORS[name]
    assert estimator.estimate(estimator.observe(batch)) == pytest.approx(batch.reward.sum() / len(batch), rel=1e-12)


@every_estimator
def test_a_model_is_asked_for_where_it_is_needed(name):
    estimator, batch = ESTIMATORS[name], dataclasses.replace(some(), direct=None, predicted=None)
    if estimator.needs_model:
        with pytest.raises(InvalidValueError, match="model"):
            estimator.observe(batch)
    else:
        assert np.isfinite(estimator.estimate(estimator.observe(batch)))


@every_estimator
def test_the_bootstrap_resamples_users_and_its_interval_holds_the_estimate(name):
    estimator, batch = ESTIMATORS[name], some()
    state = estimator.observe(batch)
    bootstrap = lambda state: percentiles(estimator, state, resample(state, np.random.default_rng(0)))  # noqa: E731
    interval = bootstrap(state)
    assert interval.low < estimator.estimate(state) < interval.high
    alone = estimator.observe(dataclasses.replace(batch, users=np.zeros(len(batch), np.int64)))
    assert bootstrap(alone) == UNKNOWN  # one user cannot say how users differ
    assert bootstrap(state) == interval


def test_ips_snips_pseudo_inverse_and_an_interval_from_the_sums_agree_with_vw_estimators():
    rng = np.random.default_rng(3)
    logged, target, reward = rng.uniform(0.05, 1.0, 3000), rng.uniform(0.0, 1.0, 3000), rng.normal(size=3000)
    ours = {name: ESTIMATORS[name].observe(single_actions(logged, target, reward)) for name in ("ips", "snips", "pseudo_inverse")}
    others = {"ips": vw_ips.Estimator(), "snips": vw_snips.Estimator()}
    slates, interval = vw_pseudo_inverse.Estimator(), vw_gaussian.Interval()
    for p_log, r, p_pred in zip(logged.tolist(), reward.tolist(), target.tolist(), strict=True):
        for other in (*others.values(), interval):
            other.add_example(p_log, r, p_pred)
        slates.add_example([p_log], r, [p_pred])
    for name, other in others.items():
        assert ESTIMATORS[name].estimate(ours[name]) == pytest.approx(other.get(), rel=1e-12)
    assert ESTIMATORS["pseudo_inverse"].estimate(ours["pseudo_inverse"]) == pytest.approx(slates.get(), rel=1e-12)
    normal = normal_interval(ours["ips"])
    assert [normal.low, normal.high] == pytest.approx(interval.get(), rel=1e-12)


def test_the_pseudo_inverse_of_slates_agrees_with_vw_estimators():
    rng = np.random.default_rng(4)
    logged, target, reward = rng.uniform(0.2, 1.0, (500, 3)), rng.uniform(0.0, 1.0, (500, 3)), rng.normal(size=500)
    other = vw_pseudo_inverse.Estimator()
    for row in range(500):
        other.add_example(logged[row].tolist(), float(reward[row]), target[row].tolist())
    batch = Batch(
        queries=np.full(500, 3.0),
        users=np.zeros(500, np.int64),
        row=np.repeat(np.arange(500), 3),
        weight=(target / logged).ravel(),
        draws=np.ones(1500),
        reward=np.stack((reward, np.zeros(500), np.zeros(500)), axis=1).ravel(),
    )
    ours = ESTIMATORS["pseudo_inverse"]
    assert ours.estimate(ours.observe(batch)) == pytest.approx(other.get(), rel=1e-12)


def outcomes(quotas):
    """Every set of k of n clusters with its probability, for whole quotas split into independent draws without replacement."""
    n = len(quotas)
    for drawn in itertools.product((0, 1), repeat=n):
        probability = np.prod([q if d else 1.0 - q for q, d in zip(quotas, drawn, strict=True)])
        if probability > 0.0:
            yield np.array(drawn), probability


@pytest.mark.parametrize("name", UNBIASED)
@pytest.mark.parametrize("n", [2, 3, 4])
def test_by_enumeration_of_all_draws_the_mean_estimate_is_the_true_value(name, n):
    """Independent inclusions, all 2^n outcomes: the mean of the estimator is sum(lambda' * reward), whatever the model says."""
    rng = np.random.default_rng(n)
    logged, target, reward, model = rng.uniform(0.2, 0.9, n), rng.uniform(0.0, 1.0, n), rng.random(n), rng.random(n)
    mean, estimator = 0.0, ESTIMATORS[name]
    for drawn, probability in outcomes(logged):
        places = np.flatnonzero(drawn)
        weight, earned = target[places] / logged[places], reward[places]
        if name == "pseudo_inverse":  # it wants every slot's say, drawn or not: a slot is a cluster that was drawn or passed over
            weight = np.where(drawn, target / logged, (1.0 - target) / (1.0 - logged))
            places, earned = np.arange(n), reward * drawn
        batch = Batch(
            queries=np.array([target.sum()]),
            users=np.zeros(1, np.int64),
            row=np.zeros(len(places), np.int64),
            weight=weight,
            draws=np.ones(len(places)),
            reward=earned,
            direct=np.array([target @ model]),
            predicted=model[places],
        )
        mean += probability * estimator.estimate(estimator.observe(batch))
    assert mean == pytest.approx(target @ reward, rel=1e-12)


@pytest.mark.parametrize(("n", "k"), [(3, 2), (4, 2), (4, 3), (5, 3)])
def test_by_enumeration_of_all_action_sequences_weights_by_inclusion_are_exact(n, k):
    """Draws one after the other without replacement: weights by inclusion probability have the mean that weights by sequence have."""
    rng = np.random.default_rng(10 * n + k)
    sequences, logged = every_sequence(rng.dirichlet(np.ones(n)), k)
    _, target = every_sequence(rng.dirichlet(np.ones(n)), k)
    reward, mean = rng.random(n), 0.0
    inclusion = [np.bincount(sequences.ravel(), np.repeat(p, k), n) for p in (logged, target)]
    for sequence, probability in zip(sequences, logged, strict=True):
        batch = Batch(
            queries=np.array([float(k)]),
            users=np.zeros(1, np.int64),
            row=np.zeros(k, np.int64),
            weight=(inclusion[1] / inclusion[0])[sequence],
            draws=np.ones(k),
            reward=reward[sequence],
        )
        mean += probability * ESTIMATORS["ips"].estimate(ESTIMATORS["ips"].observe(batch))
    by_sequence = (logged * (target / logged) * reward[sequences].sum(axis=1)).sum()
    assert mean == pytest.approx(by_sequence, rel=1e-12)


def test_the_direct_method_is_exact_with_the_right_model_and_switch_lies_between():
    batch = some(5000)
    dm, dr, switch = (ESTIMATORS[name] for name in ("dm", "dr", "switch"))
    assert dm.estimate(dm.observe(batch)) == pytest.approx(batch.direct.mean())
    wild = dataclasses.replace(batch, weight=batch.weight * np.where(np.arange(len(batch.row)) == 7, 1e5, 1.0))
    calm = switch.estimate(switch.observe(wild))
    assert abs(calm - switch.estimate(switch.observe(batch))) < abs(dr.estimate(dr.observe(wild)) - dr.estimate(dr.observe(batch)))


def test_clipping_bounds_what_one_draw_can_do_once_the_bias_is_worth_it():
    reward = np.zeros(100_000)
    reward[::10] = 1.0
    weight = np.ones(100_000)
    weight[10] = 30_000.0
    batch = single_actions(np.ones(100_000), np.ones(100_000), reward)
    clipped, ips = ESTIMATORS["clipped"], ESTIMATORS["ips"]
    wild = dataclasses.replace(batch, weight=weight, reward=np.where(np.arange(100_000) == 10, 1.0, reward))
    state = clipped.observe(wild)
    assert clipped.estimate(state) <= ips.estimate(ips.observe(wild))
    assert clipped.choose(clipped.observe(batch)) == 0  # nothing is lost, so the least threshold does


@pytest.mark.parametrize("bad", [0.0, -0.1, np.nan, np.inf, 1.5])
def test_a_propensity_that_is_none_is_refused_with_its_row(bad):
    logged = np.array([0.5, 0.5, bad, 0.5])
    with pytest.raises(InvalidPropensityError, match="row 2") as caught:
        single_actions(logged, np.zeros(4), np.ones(4))
    assert caught.value.row == 2


def test_targets_that_are_no_probabilities_and_rewards_that_are_no_numbers_are_refused():
    with pytest.raises(InvalidPropensityError, match="target"):
        single_actions(np.full(3, 0.5), np.array([0.1, 1.1, 0.1]), np.ones(3))
    with pytest.raises(InvalidValueError, match="reward"):
        single_actions(np.full(3, 0.5), np.full(3, 0.5), np.array([1.0, np.nan, 0.0]))


def test_quotas_must_sum_to_the_queries_and_stay_under_their_caps():
    quotas, draws, caps = np.array([[1.0, 1.0], [0.5, 1.5]]), np.array([[1.0, 1.0], [0.0, 2.0]]), np.full((2, 2), 2.0)
    refuse_bad_propensities(quotas, draws, caps, np.full(2, 2.0))
    with pytest.raises(InvalidPropensityError, match="sum to 2, expected 3"):
        refuse_bad_propensities(quotas, draws, caps, np.array([2.0, 3.0]))
    with pytest.raises(InvalidPropensityError, match=r"row 1.*at most 1"):
        refuse_bad_propensities(quotas, draws, np.array([[2.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(InvalidPropensityError, match="row 0"):
        refuse_bad_propensities(np.array([[0.0, 2.0]]), np.array([[1.0, 1.0]]), np.full((1, 2), 2.0))
    refuse_bad_propensities(np.array([[0.0, 2.0]]), np.array([[0.0, 2.0]]), np.full((1, 2), 2.0))  # never wanted, never drawn


def test_a_confidence_sequence_assumes_less_than_a_normal_interval_and_needs_a_range():
    batch = single_actions(np.full(5000, 0.5), np.full(5000, 0.5), np.random.default_rng(0).random(5000))
    state = ESTIMATORS["ips"].observe(batch)
    normal, sequence = normal_interval(state), confidence_sequence(state, 0.0, 1.0)
    assert sequence.low < normal.low < normal.high < sequence.high
    assert confidence_sequence(ESTIMATORS["ips"].empty(), 0.0, 1.0) == UNKNOWN
    for low, high in ((0.1, 1.0), (-1.0, -0.1), (np.nan, 1.0), (0.0, np.inf), (0.0, 0.0)):
        with pytest.raises(InvalidValueError, match="range"):
            confidence_sequence(state, low, high)


def test_buckets_bound_the_state_and_keep_users_apart():
    state = ESTIMATORS["ips"].observe(some())
    assert state.by_user.shape == (BUCKETS, 1)
    assert (state.decisions > 0).sum() == len(np.unique(some().users))
