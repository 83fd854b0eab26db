"""The modules that setup.py compiles: there, and the same to the last bit as the Python that they are made from."""

from __future__ import annotations

from importlib.machinery import EXTENSION_SUFFIXES
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit.policy.scores import POLICIES, plan
from bandit.policy.splitmix import SplitMix64
from bandit.rewards.decay import HalfLives
from bandit.types import MICROSECONDS_PER_DAY, MICROSECONDS_PER_MINUTE, SUM_NAMES, ClusterRewards, Rate, Sums
from tests.plain import COMPILED, both
from tests.strategies import EMPTY_PRIOR, NOW, candidates_of, decisions, law, scored, simple_profile, users, weighted

HALF_LIVES = HalfLives(session=30 * MICROSECONDS_PER_MINUTE, long=30 * MICROSECONDS_PER_DAY)


def test_nine_modules_are_compiled():
    assert len(COMPILED) == 9


@pytest.mark.parametrize("name", COMPILED)
def test_the_module_is_compiled(name):
    compiled, plain = both(name)
    assert compiled.__file__.endswith(tuple(EXTENSION_SUFFIXES)), f"{name} is plain Python: no C compiler when this was installed?"
    assert plain.__file__.endswith(".py")


def same(name: str, call: Any) -> None:
    """The call gives the same, bit for bit, with either form of the module."""
    compiled, plain = both(name)
    with np.errstate(all="ignore"):
        first, second = call(compiled), call(plain)
    if isinstance(first, np.ndarray):
        assert (first.dtype, first.shape, first.tobytes()) == (second.dtype, second.shape, second.tobytes())
    elif isinstance(first, list):
        assert repr(first) == repr(second)  # a float of NumPy's has another repr, and cannot be logged
    else:
        assert first == second


@law
@given(users())
def test_features_and_inputs(user):
    profile, evidence, prior = user
    same("bandit.model.featurize", lambda module: module.featurize(profile, evidence, prior, NOW, {}))
    same("bandit.policy.logged_inputs", lambda module: module.pack_policy_inputs(profile, evidence))
    same("bandit.policy.logged_inputs", lambda module: module.pack_policy_inputs(profile, evidence, np.arange(len(profile))[::2]))


@law
@given(users(), st.randoms(use_true_random=False))
def test_evidence(user, random):
    profile, _, _ = user
    ids = [*random.sample(profile.cluster_ids, len(profile) // 2), "gone"]
    sums = Sums(np.array([[random.uniform(0.0, 9.0) for _ in ids] for _ in SUM_NAMES]))
    known = ClusterRewards(cluster_ids=ids, as_of=NOW - 7 * MICROSECONDS_PER_MINUTE, sums=sums)
    same("bandit.rewards.decay", lambda module: module.align(profile, known, NOW, HALF_LIVES).values)


@law
@given(decisions())
def test_scores(decision):
    known, _, _ = decision
    weights = np.frombuffer(known.model.weights, "<f4")
    same("bandit.model.linear", lambda module: module.predictions(known.features, weights))
    for policy in POLICIES:
        same("bandit.policy.scores", lambda module, policy=policy: module.POLICIES[policy].score(known))


@pytest.mark.parametrize("n", [7, 8, 9, 20, 127, 128, 129, 300, 1001])
def test_the_average_rate_is_numpys_to_the_last_bit(n):
    """Decisions of earlier versions were made with it."""
    rng = np.random.default_rng(n)
    sums = np.zeros((5, n))
    sums[2], sums[3] = rng.gamma(0.5, 20.0, n), rng.normal(1.0, 3.0, n)
    sums[2, ::3] = 0.0
    seen = sums[2] > 0.0
    known = candidates_of(simple_profile(n), Sums(sums), EMPTY_PRIOR)
    unseen = plan("query_reward", known, 1, np.ones(n)).scores[~seen]
    np.testing.assert_array_equal(unseen, np.maximum(sums[3][seen] / sums[2][seen], 0.0).mean())
    same("bandit.policy.scores", lambda module: module.query_reward(known))


@law
@given(scored())
def test_budgeted_quotas(case):
    scores, budgets, k, caps = case
    same("bandit.policy.quotas", lambda module: module.budgeted(scores, budgets, k, caps))
    prior = Rate(mean=0.1, strength=8.0)
    same(
        "bandit.policy.quotas",
        lambda module: module.budget_by_evidence(np.asarray(scores), np.abs(scores), k, caps, prior=prior, share=0.01),
    )


@law
@given(weighted())
def test_proportional_quotas(case):
    weights, k, caps = case
    same("bandit.policy.quotas", lambda module: module.proportional(weights, k, caps))


@law
@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(1, 12))
def test_draws(seed, clusters, items):
    rng = np.random.default_rng(seed)
    offsets = np.arange(clusters + 1) * items
    weights, quotas = rng.gamma(0.3, size=clusters * items) + 1e-9, rng.uniform(0.0, items, clusters)
    quotas *= max(int(quotas.sum()), 0) / quotas.sum()
    same("bandit.policy.quotas", lambda module: module.query_caps(offsets, 10.0))
    same(
        "bandit.policy.sampling",
        lambda module: module.draw_items(
            range(clusters),
            quotas.tolist(),
            module.draw_counts(quotas.tolist(), np.random.default_rng(seed).random(clusters).tolist()),
            offsets.tolist(),
            weights,
            SplitMix64(seed),
        ),
    )
    same("bandit.policy.splitmix", lambda module: module.SplitMix64(seed).random(clusters))
    same("bandit.policy.sampling", lambda module: module.inclusion_probabilities(weights.tolist(), int(quotas[0])))
