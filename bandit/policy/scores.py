"""Policies: a score for each cluster, and the quotas that follow from the scores.

A policy is chosen by its name (`POLICIES`); `plan` is the way from clusters to expected draws, and it is pure. Serving plans one decision,
evaluation many logged ones, with the same functions: they score clusters that lie one after the other, whatever decision each belongs to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from bandit.errors import InvalidValueError
from bandit.model.exploration import Exploration
from bandit.model.featurize import FEATURE_NAMES
from bandit.model.linear_model import LinearModel
from bandit.policy.quotas import budget_by_evidence, proportional
from bandit.types import Floats, Floats32, Ints, Prior, Sums

_LEAST_SHARE = 0.01  # of the average weight: a cluster with nothing but hides is still drawn now and then
_SHRUNK_RATE = FEATURE_NAMES.index("shrunk_rate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Everything that a policy may look at: n clusters that can be queried, of one decision or of several.

    Shapes: actions and importance (n,); features float32 (n, d), in the order of `FEATURE_NAMES`. The clusters of decision r lie from
    offsets[r] to offsets[r + 1]; without offsets all are of one decision.
    """

    actions: Floats
    importance: Floats
    evidence: Sums
    features: Floats32
    prior: Prior
    model: LinearModel | None
    exploration: Exploration
    offsets: Ints | None = None

    def take(self, rows: Ints) -> Candidates:
        """Some clusters of one decision, by position."""
        return replace(
            self,
            actions=self.actions[rows],
            importance=self.importance[rows],
            evidence=self.evidence.take(rows),
            features=self.features[rows],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Scores and quotas of the candidates, each float64 (n,); the quotas are what is drawn from and what is logged."""

    scores: Floats
    quotas: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A policy.

    score: of each candidate, float64 (n,). inputs: the logged inputs (`bandit.policy.logged_inputs`) that it reads: evaluation reads no
    others from a log. takes_model: whether it reads features, too, and spends the budget of a model; the quotas of all others are
    proportional to their scores.
    """

    score: Callable[[Candidates], Floats]
    inputs: tuple[str, ...] = ()
    takes_model: bool = False


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
    n, offsets = len(candidates.actions), candidates.offsets
    scores = np.empty(n)
    _fill_rates(scores, np.empty(n), candidates.evidence, np.array((0, n), np.int64) if offsets is None else offsets)
    return scores


def _fill_rates(scores: Floats, seen: Floats, evidence: Sums, offsets: Ints) -> None:
    """Fill the scores of `query_reward`; `seen` is room for the rates of a decision's clusters that have impressions."""
    rewards, impressions = evidence.reward_long, evidence.impressions_long
    for decision in range(offsets.shape[0] - 1):
        start, end, count, average = offsets[decision], offsets[decision + 1], 0, 0.0
        for row in range(start, end):
            if impressions[row] > 0.0:
                scores[row] = rewards[row] / impressions[row]
                seen[count] = max(scores[row], 0.0)
                count += 1
        if count > 0:
            average = _sum(seen, 0, count) / count
        for row in range(start, end):
            if average <= 0.0:
                scores[row] = 1.0
            elif impressions[row] > 0.0:
                scores[row] = max(scores[row], _LEAST_SHARE * average)
            else:
                scores[row] = average


def _sum(values: Floats, start: int, count: int) -> float:
    """Sum of `count` values, to the bit as NumPy adds them: so were the averages made that decisions were logged with."""
    if count > 128:
        half = count // 2 - count // 2 % 8
        return _sum(values, start, half) + _sum(values, start + half, count - half)
    total, whole, first = 0.0, count - count % 8, start
    if whole > 0:
        for row in range(start + 8, start + whole):
            values[start + (row - start) % 8] += values[row]
        total = (values[first] + values[first + 1]) + (values[first + 2] + values[first + 3])
        total += (values[first + 4] + values[first + 5]) + (values[first + 6] + values[first + 7])
    for row in range(start + whole, start + count):
        total += values[row]
    return total


def bandit(candidates: Candidates) -> Floats:
    """Shrunk rate, plus the learned residual within its limit, plus `optimism` standard deviations; unit reward per impression.

    The deviation is that of a rate of as many impressions as were seen, are assumed by the prior, or are in flight: still expected from
    queries already drawn, so that a cluster just drawn is not drawn again for the same lack of evidence, which is what breaks optimism
    when feedback is late.
    """
    if candidates.model is None:
        raise InvalidValueError("model", expected="a model for the policy 'bandit'", received=None)
    scores = candidates.model.predict(candidates.features)
    _add_optimism(scores, candidates.features, candidates.evidence.values, candidates.prior.rate.strength, candidates.exploration)
    return scores


def _add_optimism(scores: Floats, features: Floats32, sums: Floats, strength: float, exploration: Exploration) -> None:
    """Turn residuals into scores; `sums` are those of `Sums`, (5, n)."""
    session, impressions, draws = sums[0], sums[2], sums[4]
    limit, optimism, per_query = exploration.residual_limit, exploration.optimism, exploration.impressions_per_query
    for row in range(scores.shape[0]):
        rate = float(features[row, _SHRUNK_RATE])
        residual = min(max(scores[row], -limit), limit)
        mean = min(max(rate, 0.0), 1.0)
        in_flight = max(draws[row] * per_query - session[row], 0.0)
        certainty = impressions[row] + strength + in_flight
        scores[row] = rate + residual + optimism * math.sqrt(mean * (1.0 - mean) / certainty)


POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        "uniform": Policy(score=uniform),
        "action_count": Policy(score=action_count, inputs=("actions",)),
        "importance": Policy(score=importance, inputs=("importance",)),
        "query_reward": Policy(score=query_reward, inputs=("impressions_long", "reward_long")),
        "bandit": Policy(
            score=bandit,
            inputs=("topic_ids", "impressions_session", "reward_session", "impressions_long", "reward_long", "draws_session"),
            takes_model=True,
        ),
    }
)
FALLBACK = "query_reward"  # what the bandit does while no model has been promoted


def plan(policy: str, candidates: Candidates, k: npt.ArrayLike, caps: Floats) -> Plan:
    """Scores and quotas under the named policy.

    Args:
        policy: a key of `POLICIES`.
        candidates: n clusters, of one decision or of several.
        k: queries of the request, > 0; of several decisions (decisions,).
        caps: (n,), the most queries that each cluster can give, > 0.

    Raises: InvalidValueError for an unknown policy, bad caps, or quotas that are not a distribution of k queries.
    """
    if policy not in POLICIES:
        raise InvalidValueError("policy", expected=f"one of {sorted(POLICIES)}", received=policy)
    chosen = POLICIES[policy]
    scores, offsets, prior, share = chosen.score(candidates), candidates.offsets, candidates.prior.rate, candidates.exploration.budget
    if chosen.takes_model:
        impressions = candidates.evidence.impressions_long
        quotas = budget_by_evidence(scores, impressions, k, caps, prior=prior, share=share, offsets=offsets)
    else:
        quotas = proportional(scores, k, caps, offsets)
    return Plan(scores=scores, quotas=quotas)
