"""Contract of every policy, and what each of them promises."""

from __future__ import annotations

import dataclasses
import typing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit.errors import InvalidValueError
from bandit.model.featurize import FEATURE_NAMES
from bandit.model.linear_model import weight_count
from bandit.policy.logged_inputs import INPUTS, evidence_from_inputs
from bandit.policy.scores import FALLBACK, POLICIES, Candidates, plan, query_reward
from bandit.settings.sections import PolicySettings
from bandit.types import SUM_NAMES, Sums
from tests.strategies import (
    EMPTY_PRIOR,
    candidates_of,
    decisions,
    exploring,
    greedy_value,
    law,
    linear_model,
    random_model,
    simple_evidence,
    simple_profile,
)

every_policy = pytest.mark.parametrize("policy", sorted(POLICIES))
SILENT = linear_model(np.zeros(weight_count(len(FEATURE_NAMES))))


def candidates(impressions, reward, draws=None, model=SILENT, exploration=None, **changes):
    profile = dataclasses.replace(simple_profile(len(impressions)), **changes)
    return candidates_of(profile, simple_evidence(impressions, reward, draws), EMPTY_PRIOR, model, exploration)


def test_five_policies_are_known_and_the_settings_name_the_same():
    assert len(POLICIES) == 5
    assert FALLBACK in POLICIES
    assert set(typing.get_args(PolicySettings.model_fields["name"].annotation)) == set(POLICIES)


@every_policy
@law
@given(decisions())
def test_quotas_are_positive_within_the_caps_and_sum_to_k_and_scores_are_finite(policy, decision):
    known, k, caps = decision
    result = plan(policy, known, k, caps)
    assert result.scores.shape == result.quotas.shape == caps.shape
    assert result.scores.dtype == result.quotas.dtype == np.float64
    assert np.isfinite(result.scores).all()
    assert (result.quotas > 0.0).all()
    assert (result.quotas <= caps).all()
    assert result.quotas.sum() == pytest.approx(min(k, caps.sum()), rel=1e-9)


@every_policy
@law
@given(decisions())
def test_a_plan_is_pure_and_does_not_depend_on_the_order_of_clusters(policy, decision):
    known, k, caps = decision
    copy = caps.copy()
    result, rows = plan(policy, known, k, caps), np.arange(len(caps))[::-1]
    np.testing.assert_array_equal(plan(policy, known, k, caps).quotas, result.quotas)
    np.testing.assert_array_equal(caps, copy)
    arrays = {name: getattr(known, name)[rows] for name in ("actions", "importance", "features")}
    moved = plan(policy, dataclasses.replace(known, evidence=known.evidence.take(rows), **arrays), k, caps[rows])
    np.testing.assert_allclose(moved.scores, result.scores[rows], rtol=1e-5, atol=1e-5)


@every_policy
@law
@given(st.lists(decisions(), min_size=1, max_size=5))
def test_many_decisions_at_once_are_planned_as_each_alone_to_the_last_bit(policy, several):
    shared = {name: getattr(several[0][0], name) for name in ("prior", "model", "exploration")}
    known = [dataclasses.replace(candidates, **shared) for candidates, _, _ in several]
    arrays = {name: np.concatenate([getattr(one, name) for one in known]) for name in ("actions", "importance", "features")}
    sums = Sums(np.concatenate([one.evidence.values for one in known], axis=1))
    offsets = np.concatenate(([0], np.cumsum([len(one.actions) for one in known])))
    caps = [caps for _, _, caps in several]
    together = plan(
        policy, Candidates(evidence=sums, offsets=offsets, **arrays, **shared), [k for _, k, _ in several], np.concatenate(caps)
    )
    alone = [plan(policy, one, k, cap) for one, (_, k, cap) in zip(known, several, strict=True)]
    assert together.scores.tobytes() == b"".join(one.scores.tobytes() for one in alone)
    assert together.quotas.tobytes() == b"".join(one.quotas.tobytes() for one in alone)


@every_policy
@law
@given(decisions())
def test_a_policy_reads_no_inputs_but_those_that_it_names(policy, decision):
    """Evaluation reads no others from a log: here they are not a number."""
    known, k, caps = decision
    named, nan = POLICIES[policy].inputs, np.full(len(caps), np.nan)
    columns = {name: getattr(known, name) for name in ("actions", "importance")}
    columns |= {name: getattr(known.evidence, name) for name in SUM_NAMES}
    evidence = evidence_from_inputs({name: columns[name] for name in SUM_NAMES if name in named}, nan)
    others = {name: columns[name] if name in named else nan for name in ("actions", "importance")}
    if not POLICIES[policy].takes_model:
        others["features"] = np.full_like(known.features, np.nan)
    bare = dataclasses.replace(known, evidence=evidence, **others)
    assert set(named) <= set(INPUTS)
    assert plan(policy, bare, k, caps).quotas.tobytes() == plan(policy, known, k, caps).quotas.tobytes()


@every_policy
def test_clusters_that_are_alike_get_the_same_quota(policy):
    result = plan(policy, candidates([3] * 4, [1] * 4, last_action_at=np.zeros(4, np.int64)), 2, np.full(4, 2.0))
    np.testing.assert_allclose(result.quotas, 0.5, rtol=1e-6)


@every_policy
@pytest.mark.parametrize(("k", "caps"), [(0, [1.0, 1.0]), (-1, [1.0, 1.0]), (1, [0.0, 1.0]), (1, [np.nan, 1.0]), (1, [1.0])])
def test_bad_k_and_caps_are_refused(policy, k, caps):
    with pytest.raises(InvalidValueError):
        plan(policy, candidates([1, 2], [1, 1]), k, np.array(caps))


def test_an_unknown_policy_is_refused_with_the_known_names():
    with pytest.raises(InvalidValueError, match="query_reward"):
        plan("greedy", candidates([1], [1]), 1, np.ones(1))


def test_uniform_action_count_and_importance_follow_their_weights():
    known = candidates([0] * 3, [0] * 3, action_counts=np.array([[4.0, 2.0], [3.0, 0.0], [0.0, 0.0]]), importance=np.array([1.0, 2.0, 5.0]))
    far = np.full(3, 9.0)
    np.testing.assert_allclose(plan("uniform", known, 3, far).quotas, [1, 1, 1])
    np.testing.assert_allclose(plan("action_count", known, 1, far).quotas, [0.6, 0.3, 0.1])  # no actions count as one
    np.testing.assert_allclose(plan("importance", known, 1, far).quotas, [1 / 8, 2 / 8, 5 / 8])


def test_importance_of_zero_everywhere_is_uniform():
    known = candidates([0] * 2, [0] * 2, importance=np.zeros(2))
    np.testing.assert_allclose(plan("importance", known, 12, np.full(2, 10.0)).quotas, [6.0, 6.0])


def test_query_reward_is_the_published_rule_an_empty_cluster_gets_the_average_rate():
    scores = query_reward(candidates([10, 4, 0], [5, 0.4, 0]))
    np.testing.assert_allclose(scores, [0.5, 0.1, 0.3])


def test_query_reward_without_any_reward_is_uniform():
    np.testing.assert_array_equal(query_reward(candidates([0, 0], [0, 0])), [1, 1])
    np.testing.assert_array_equal(query_reward(candidates([5, 3], [0, -3])), [1, 1])


def test_a_cluster_with_nothing_but_hides_keeps_a_small_positive_quota():
    result = plan("query_reward", candidates([10, 10], [6, -10]), 1, np.full(2, 5.0))
    assert 0.0 < result.quotas[1] < 0.05
    explored = plan("bandit", candidates([10, 10], [6, -10]), 1, np.full(2, 5.0))
    assert 0.0 < explored.quotas[1] < 0.05


def test_the_bandit_without_a_model_raises():
    with pytest.raises(InvalidValueError, match=r"^model:"):
        plan("bandit", candidates([1], [1], model=None), 1, np.ones(1))


@law
@given(decisions())
def test_the_bandit_gives_up_at_most_its_budget_of_the_greedy_value(decision):
    """The certificate; where the greedy value is small or negative, its floor is k times the global rate (0.01, if that is small too)."""
    known, k, caps = decision
    result, budget = plan("bandit", known, k, caps), known.exploration.budget
    best = greedy_value(result.scores, k, caps)
    allowed = budget * max(best, k * max(known.prior.rate.mean, 0.01))
    assert best - result.quotas @ result.scores <= allowed * (1.0 + 1e-9) + 1e-12 * np.abs(result.scores).max() * k


def test_the_default_budget_costs_half_a_percent_of_the_greedy_value_at_most_and_spends_some_of_it():
    rng = np.random.default_rng(0)
    for _ in range(50):
        impressions = rng.uniform(0, 50, 30)
        known = candidates(impressions, impressions * rng.uniform(0, 1, 30), model=random_model(1))
        result, best = plan("bandit", known, 10, np.full(30, 3.0)), 0.0
        best = greedy_value(result.scores, 10, np.full(30, 3.0))
        assert 0.0 < best - result.quotas @ result.scores <= 0.005 * best


def test_exploration_is_spent_where_evidence_is_thin():
    """Two clusters of the same score, one known well and one hardly: the second is drawn more often."""
    known = candidates([800, 0.8, 100], [400, 0.4, 99], exploration=exploring(optimism=0.0, budget=0.02))
    features = known.features.copy()
    features[:2, FEATURE_NAMES.index("shrunk_rate")] = 0.5
    quotas = plan("bandit", dataclasses.replace(known, features=features), 1, np.ones(3)).quotas
    assert quotas[2] > quotas[1] > 10.0 * quotas[0]


def test_optimism_prefers_the_less_known_of_two_equal_rates_and_none_does_not():
    at = lambda optimism: candidates([80, 0], [8, 0], exploration=exploring(optimism=optimism))  # noqa: E731
    bold, plain = (plan("bandit", at(optimism), 1, np.ones(2)).scores for optimism in (1.5, 0.0))
    assert bold[1] - bold[0] > 0.05
    np.testing.assert_allclose(plain, 0.1, atol=1e-6)


def test_draws_in_flight_lower_the_optimism_of_their_cluster_only():
    """What breaks optimism when feedback is late: a cluster just drawn must not look as unknown as before."""
    before, after = (plan("bandit", candidates([0, 0], [0, 0], draws), 1, np.ones(2)) for draws in ([0, 0], [5, 0]))
    assert after.scores[0] < before.scores[0] - 0.01
    assert after.scores[1] == before.scores[1]
    assert after.quotas[0] < before.quotas[0]


def test_the_models_residual_is_added_to_the_score():
    constant = np.zeros(weight_count(len(FEATURE_NAMES)))
    constant[len(FEATURE_NAMES)] = -0.25  # of the costs: a reward of 0.25
    plain, raised = (plan("bandit", candidates([3, 0], [1, 0], model=model), 1, np.ones(2)) for model in (SILENT, linear_model(constant)))
    np.testing.assert_allclose(raised.scores - plain.scores, 0.25, atol=1e-6)


def test_the_residual_never_moves_a_score_by_more_than_its_limit():
    constant = np.zeros(weight_count(len(FEATURE_NAMES)))
    plain = plan("bandit", candidates([3, 0], [1, 0]), 1, np.ones(2))
    for cost, moved in ((-50.0, 0.2), (50.0, -0.2)):
        constant[len(FEATURE_NAMES)] = cost
        known = candidates([3, 0], [1, 0], model=linear_model(constant), exploration=exploring(residual_limit=0.2))
        np.testing.assert_allclose(plan("bandit", known, 1, np.ones(2)).scores - plain.scores, moved, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("optimism", value) for value in (-0.1, np.nan, np.inf)),
        *(("budget", value) for value in (0.0, -1.0, 1.1, np.nan)),
        *(("residual_limit", value) for value in (-0.1, np.nan)),
        *(("impressions_per_query", value) for value in (0.0, np.nan, np.inf)),
    ],
)
def test_exploration_that_would_break_the_certificate_is_refused_by_name(name, value):
    with pytest.raises(InvalidValueError, match=name):
        exploring(**{name: value})
