"""Policies: one score per cluster, and the quotas that follow from the scores.

A policy is chosen by its name (`POLICIES`); `plan` is the whole way from a user's clusters to expected draws, and it is pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from bandit.errors import InvalidValueError
from bandit.model.exploration import Exploration
from bandit.model.linear_model import LinearModel
from bandit.policy.optimism import optimistic
from bandit.policy.quotas import budget_by_evidence, is_distribution, proportional
from bandit.types import Floats, Floats32, Ints, Prior, Sums

LEAST_VALUE = 1e-6  # where nothing earns anything: the budget must stay positive for every cluster to keep a chance
LEAST_SHARE = 0.01  # of the average weight: a cluster with nothing but hides is still drawn now and then


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Everything that a policy may look at: the clusters of one user that can be queried now, n of them.

    Shapes: actions and importance (n,); features float32 (n, d), in the order of `FEATURE_NAMES`.
    """

    actions: Floats
    importance: Floats
    evidence: Sums
    features: Floats32
    prior: Prior
    model: LinearModel | None
    exploration: Exploration

    def take(self, rows: Ints) -> Candidates:
        """Some of them, by position."""
        return replace(
            self,
            actions=self.actions[rows],
            importance=self.importance[rows],
            evidence=self.evidence.take(rows),
            features=self.features[rows],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Scores and quotas of one decision, each float64 (n,); the quotas are what is drawn from and what is logged."""

    scores: Floats
    quotas: Floats


def uniform(candidates: Candidates) -> Floats:
    """The same weight for every cluster."""
    return np.ones(len(candidates.actions))


def action_count(candidates: Candidates) -> Floats:
    """Raw number of actions: the flow that Query Rewards replaced. A cluster without actions counts as one."""
    return np.maximum(candidates.actions, 1.0)


def importance(candidates: Candidates) -> Floats:
    """Sum of exp(-0.01 * age in days) over the cluster's actions. Source: Pal et al., PinnerSage, KDD 2020."""
    return np.maximum(candidates.importance, np.finfo(np.float64).tiny)


def query_reward(candidates: Candidates) -> Floats:
    """Plain engagement rate, with the average for clusters without impressions: the published flow.

    Rates are floored at a hundredth of the average, so that hides alone never shut a cluster out; without any reward all weigh the same.
    """
    evidence = candidates.evidence
    seen = evidence.impressions_long > 0.0
    rates = np.divide(evidence.reward_long, evidence.impressions_long, out=np.zeros(len(seen)), where=seen)
    average = float(np.maximum(rates[seen], 0.0).mean()) if seen.any() else 0.0
    if average <= 0.0:
        return np.ones(len(seen))
    return np.maximum(np.where(seen, rates, average), LEAST_SHARE * average)


def bandit(candidates: Candidates) -> Floats:
    """The model's optimistic scores (`bandit.policy.optimism`)."""
    model = candidates.model
    if model is None:
        raise InvalidValueError("model", expected="a model for the policy 'bandit'", received=None)
    residuals = model.predict(candidates.features)
    return optimistic(candidates.features, residuals, candidates.evidence, candidates.prior.rate.strength, candidates.exploration)


def _weighted(weigh: Callable[[Candidates], Floats]) -> Callable[[Candidates, int, Floats], Plan]:
    def plan(candidates: Candidates, k: int, caps: Floats) -> Plan:
        weights = weigh(candidates)
        return Plan(scores=weights, quotas=proportional(weights, k, caps))

    return plan


def _explored(candidates: Candidates, k: int, caps: Floats) -> Plan:
    """Budgeted quotas: the decision gives up at most `budget` of the greedy value of its own scores, spent where evidence is thin."""
    scores, prior, exploration = bandit(candidates), candidates.prior.rate, candidates.exploration
    quotas = budget_by_evidence(
        scores,
        candidates.evidence.impressions_long,
        k,
        caps,
        strength=prior.strength,
        share=exploration.budget,
        least=max(k * prior.mean, LEAST_VALUE),
    )
    return Plan(scores=scores, quotas=quotas)


POLICIES: Mapping[str, Callable[[Candidates, int, Floats], Plan]] = MappingProxyType(
    {
        "uniform": _weighted(uniform),
        "action_count": _weighted(action_count),
        "importance": _weighted(importance),
        "query_reward": _weighted(query_reward),
        "bandit": _explored,
    }
)
FALLBACK = "query_reward"  # what the bandit does while no model has been promoted


def plan(policy: str, candidates: Candidates, k: int, caps: Floats) -> Plan:
    """Scores and quotas of k queries under the named policy.

    Args:
        policy: a key of `POLICIES`.
        candidates: n clusters.
        k: queries of the request, > 0.
        caps: (n,), the most queries that each cluster can give, > 0.

    Raises: InvalidValueError for an unknown policy, bad caps, or quotas that are not a distribution of k queries.
    """
    if policy not in POLICIES:
        raise InvalidValueError("policy", expected=f"one of {sorted(POLICIES)}", received=policy)
    result = POLICIES[policy](candidates, k, caps)
    if not is_distribution(result.quotas, k, caps):
        expected = f"positive numbers that sum to {min(float(k), float(caps.sum()))}"
        raise InvalidValueError("quotas", expected=expected, received=result.quotas.tolist())
    return result
