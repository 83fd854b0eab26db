"""Every policy over many decisions at once is the policy that serves, decision by decision."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit.model.exploration import Exploration
from bandit.model.featurize import FEATURE_NAMES, featurize, rebase
from bandit.model.linear_model import weight_count
from bandit.policy.logged_inputs import INPUTS, pack_policy_inputs
from bandit.policy.policy_rows import ROW_POLICIES, Rows
from bandit.policy.quota_rows import budgeted_rows, greedy_rows, proportional_rows
from bandit.policy.quotas import budgeted, greedy_value, proportional
from bandit.policy.scores import POLICIES, Candidates, plan
from bandit.types import Prior, Rate
from tests.strategies import NOW, candidates_of, decisions, law, linear_model, priors, scored, users, weighted


def padded(arrays, fill=0.0):
    width = max(len(array) for array in arrays)
    return np.stack([np.concatenate((array, np.full((width - len(array), *array.shape[1:]), fill))) for array in arrays])


@law
@given(st.lists(weighted(), min_size=1, max_size=6))
def test_proportional_rows_are_proportional_of_each_row(cases):
    weights, ks, caps = zip(*cases, strict=True)
    rows = proportional_rows(padded(weights), np.array(ks, float), padded(caps))
    for row, w, k, cap in zip(rows, weights, ks, caps, strict=True):
        np.testing.assert_allclose(row[: len(w)], proportional(w, k, cap), rtol=1e-9)
        assert not row[len(w) :].any()


@law
@given(st.lists(scored(), min_size=1, max_size=6))
def test_budgeted_rows_are_budgeted_of_each_row(cases):
    scores, budgets, ks, caps = zip(*cases, strict=True)
    rows = budgeted_rows(padded(scores), padded(budgets), np.array(ks, float), padded(caps))
    for row, s, b, k, cap in zip(rows, scores, budgets, ks, caps, strict=True):
        np.testing.assert_allclose(row[: len(s)], budgeted(s, b, k, cap), rtol=1e-4, atol=1e-7 * k)
        assert row.sum() == pytest.approx(min(k, cap.sum()), rel=1e-9)
        assert not row[len(s) :].any()


@law
@given(st.lists(scored(), min_size=1, max_size=6))
def test_greedy_rows_are_the_greedy_value_of_each_row(cases):
    scores, _, ks, caps = zip(*cases, strict=True)
    values = greedy_rows(padded(scores), np.array(ks, float), padded(caps))
    for value, s, k, cap in zip(values, scores, ks, caps, strict=True):
        assert value == pytest.approx(greedy_value(s, k, cap), rel=1e-9, abs=1e-9)


def rows_of(known: list[tuple[Candidates, int, np.ndarray]]) -> Rows:
    columns = {name: [] for name in INPUTS}
    for candidates, _, _ in known:
        columns["topic_ids"].append(np.zeros(len(candidates.actions)))
        columns["actions"].append(candidates.actions)
        columns["importance"].append(candidates.importance)
        for name in INPUTS[3:]:
            columns[name].append(getattr(candidates.evidence, name))
    return Rows(
        caps=padded([caps for _, _, caps in known]),
        k=np.array([k for _, k, _ in known], float),
        inputs={name: padded(arrays) for name, arrays in columns.items()},
        totals={name: np.array([array.sum() for array in arrays]) for name, arrays in columns.items()},
        features=padded([candidates.features for candidates, _, _ in known]).astype(np.float32),
    )


def test_the_policies_over_rows_are_those_that_serve():
    assert set(ROW_POLICIES) == set(POLICIES)
    assert len(ROW_POLICIES) == 5


@pytest.mark.parametrize("policy", sorted(ROW_POLICIES))
@law
@given(st.lists(decisions(), min_size=1, max_size=5), st.integers(0, 100))
def test_a_policy_over_rows_is_its_plan_of_each_decision(policy, known, seed):
    """Under the model's own prior, whatever prior the features were served with."""
    prior = Prior(rate=Rate(mean=0.2, strength=8.0), topic_means={0: 0.3})
    flat = np.random.default_rng(seed).normal(0.0, 0.05, weight_count(len(FEATURE_NAMES)))
    model = linear_model(flat, prior, exploration=Exploration(optimism=1.0, budget=0.02))
    scores, quotas = ROW_POLICIES[policy].plan(rows_of(known), model)
    for row, (candidates, k, caps) in enumerate(known):
        n = len(caps)
        sums = candidates.evidence
        features = rebase(candidates.features, sums, (sums.reward_long.sum(), sums.impressions_long.sum()), np.zeros(n, np.int64), prior)
        served = dataclasses.replace(candidates, features=features, prior=prior, model=model, exploration=model.manifest.exploration)
        planned = plan(policy, served, k, caps)
        np.testing.assert_allclose(scores[row, :n], planned.scores, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(quotas[row, :n], planned.quotas, rtol=2e-2, atol=1e-3 * k)
        assert quotas[row].sum() == pytest.approx(min(k, caps.sum()), rel=1e-9)


@law
@given(users(min_clusters=1), priors())
def test_features_rebased_to_another_prior_are_those_it_would_have_served(user, other):
    profile, sums, prior = user
    served = featurize(profile, sums, prior, NOW, {})
    totals = sums.reward_long.sum(), sums.impressions_long.sum()
    again = rebase(served, sums, totals, profile.topic_ids, other)
    assert again.tobytes() == featurize(profile, sums, other, NOW, {}).tobytes()
    assert rebase(served, sums, totals, profile.topic_ids, prior).tobytes() == served.tobytes()


@law
@given(users(min_clusters=2))
def test_packed_inputs_are_those_of_the_candidates_and_the_sums_of_the_whole_profile(user):
    profile, sums, prior = user
    rows = np.arange(len(profile))[1:]
    matrix = np.frombuffer(pack_policy_inputs(profile, sums, rows), "<f8").reshape(-1, len(INPUTS))
    known = candidates_of(profile, sums, prior)
    np.testing.assert_array_equal(matrix[:-1, INPUTS.index("actions")], known.actions[1:])
    np.testing.assert_array_equal(matrix[:-1, INPUTS.index("reward_long")], sums.reward_long[1:])
    assert matrix[-1, INPUTS.index("impressions_long")] == pytest.approx(sums.impressions_long.sum(), rel=1e-12)
