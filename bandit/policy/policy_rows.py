"""`bandit.policy.scores.plan` for many logged decisions at once: what another policy would have drawn in each of them.

A row is a decision, a column a candidate; shorter decisions are padded with places whose cap is 0.
`tests/bandit/policy/test_policy_rows.py` holds every policy to `plan`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from bandit.errors import InvalidValueError
from bandit.model.exploration import Exploration
from bandit.model.featurize import FEATURE_NAMES, rebase
from bandit.model.linear_model import LinearModel
from bandit.policy.logged_inputs import evidence_from_inputs
from bandit.policy.quota_rows import budgeted_rows, greedy_rows, proportional_rows
from bandit.policy.scores import LEAST_SHARE, LEAST_VALUE
from bandit.types import Floats, Floats32, Sums


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """R logged decisions of at most n candidates: caps (R, n), k (R,), and those inputs of the log that the policy needs.

    inputs: by name (`bandit.policy.logged_inputs`), each (R, n), and totals over the user's clusters likewise, each (R,).
    features: float32 (R, n, d), as served.
    """

    caps: Floats
    k: Floats
    inputs: Mapping[str, Floats]
    totals: Mapping[str, Floats]
    features: Floats32 | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPolicy:
    """A policy over rows. `inputs` names what it reads of each decision; `features`, whether it reads those too."""

    plan: Callable[[Rows, LinearModel | None], tuple[Floats, Floats]]
    inputs: tuple[str, ...] = ()
    features: bool = False


def uniform(rows: Rows) -> Floats:
    """The same weight for every cluster."""
    return np.ones_like(rows.caps)


def action_count(rows: Rows) -> Floats:
    """Raw number of actions."""
    return np.maximum(rows.inputs["actions"], 1.0)


def importance(rows: Rows) -> Floats:
    """PinnerSage's importance."""
    return np.maximum(rows.inputs["importance"], np.finfo(np.float64).tiny)


def query_reward(rows: Rows) -> Floats:
    """Plain engagement rate, the average for clusters without impressions."""
    reward, impressions = rows.inputs["reward_long"], rows.inputs["impressions_long"]
    seen = (impressions > 0.0) & (rows.caps > 0.0)
    rates = np.divide(reward, impressions, out=np.zeros_like(reward), where=seen)
    count = seen.sum(axis=1)
    average = np.divide(np.maximum(rates, 0.0).sum(axis=1), count, out=np.zeros(len(count)), where=count > 0)[:, None]
    return np.where(average > 0.0, np.maximum(np.where(seen, rates, average), LEAST_SHARE * average), 1.0)


def _weighted(weigh: Callable[[Rows], Floats]) -> Callable[[Rows, LinearModel | None], tuple[Floats, Floats]]:
    def plan(rows: Rows, model: LinearModel | None) -> tuple[Floats, Floats]:  # noqa: ARG001 -- one signature
        weights = weigh(rows)
        return weights, proportional_rows(weights, rows.k, rows.caps)

    return plan


def _explored(rows: Rows, model: LinearModel | None) -> tuple[Floats, Floats]:
    """Shrunk rate of the model's own prior, residual, optimism, budgeted quotas; as serving would with this model."""
    if model is None or rows.features is None:
        raise InvalidValueError("model", expected="a model and logged features for the policy 'bandit'", received=None)
    sums, prior, exploration = evidence_from_inputs(dict(rows.inputs)), model.prior, model.manifest.exploration
    totals = rows.totals["reward_long"][:, None], rows.totals["impressions_long"][:, None]
    features = rebase(rows.features, sums, totals, rows.inputs["topic_ids"].astype(np.int64), prior)
    rates = features[..., FEATURE_NAMES.index("shrunk_rate")].astype(np.float64)
    residual = model.predict(features.reshape(-1, features.shape[-1])).reshape(rates.shape)
    mean = np.clip(rates, 0.0, 1.0)
    deviation = np.sqrt(mean * (1.0 - mean) / _certainty(sums, prior.rate.strength, exploration))
    scores = rates + np.clip(residual, -exploration.residual_limit, exploration.residual_limit) + exploration.optimism * deviation
    thin = np.where(rows.caps > 0.0, 1.0 / (sums.impressions_long + prior.rate.strength), 0.0)
    value = np.maximum(np.maximum(greedy_rows(scores, rows.k, rows.caps), rows.k * prior.rate.mean), LEAST_VALUE)
    budgets = (exploration.budget * value / thin.sum(axis=1))[:, None] * thin
    return scores, budgeted_rows(scores, budgets, rows.k, rows.caps)


def _certainty(sums: Sums, strength: float, exploration: Exploration) -> Floats:
    in_flight = np.maximum(sums.draws_session * exploration.impressions_per_query - sums.impressions_session, 0.0)
    return np.asarray(sums.impressions_long + strength + in_flight, np.float64)


_SUMS = ("topic_ids", "impressions_session", "reward_session", "impressions_long", "reward_long", "draws_session")
ROW_POLICIES: Mapping[str, RowPolicy] = MappingProxyType(
    {
        "uniform": RowPolicy(plan=_weighted(uniform)),
        "action_count": RowPolicy(plan=_weighted(action_count), inputs=("actions",)),
        "importance": RowPolicy(plan=_weighted(importance), inputs=("importance",)),
        "query_reward": RowPolicy(plan=_weighted(query_reward), inputs=("impressions_long", "reward_long")),
        "bandit": RowPolicy(plan=_explored, inputs=_SUMS, features=True),
    }
)
