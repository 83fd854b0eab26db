"""What evaluation values is what serving draws from: the quotas of logged decisions, computed again from the log, to the last bit."""

from __future__ import annotations

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from bandit.model.featurize import FEATURE_NAMES, FEATURE_VERSION, featurize
from bandit.model.linear_model import LinearModel, weight_count
from bandit.policy.logged_inputs import pack_policy_inputs
from bandit.policy.quotas import query_caps
from bandit.policy.scores import POLICIES, Candidates, plan
from bandit.records import Decision, Query
from bandit.rewards.decay import HalfLives, align
from bandit.types import ClusterRewards, Prior, Profile, Rate, Sums
from tests.conftest import Deployment
from tests.strategies import exploring, linear_model
from tests.tables_made import DAY, HOUR, MINUTE, NOW, decision, feedback, write_decisions, write_feedback
from training.evaluation.evaluate import Target, planned
from training.models.join import join
from training.models.outcomes import outcomes_file, read_group

DECISIONS = 10_000
MADE = NOW - 2 * DAY
HALF_LIVES = HalfLives(session=30 * MINUTE, long=14 * DAY)


def model(budget: float = 0.01, mean: float = 0.15) -> LinearModel:
    flat = np.random.default_rng(1).normal(0.0, 0.05, weight_count(len(FEATURE_NAMES)))
    prior = Prior(rate=Rate(mean=mean, strength=8.0), topic_means={0: 0.31, 1: 0.07, 2: 0.2})
    return linear_model(flat, prior, exploration=exploring(optimism=1.5, budget=budget, impressions_per_query=4.0, residual_limit=0.3))


def user(rng: np.random.Generator) -> tuple[Profile, ClusterRewards | None]:
    """1 to 40 clusters with up to 11 action types, whose counts need not be whole; some clusters without rewards, some users without."""
    n, types = int(rng.integers(1, 41)), int(rng.integers(1, 12))
    offsets = np.concatenate(([0], np.cumsum(rng.integers(1, 8, n))))
    profile = Profile(
        cluster_ids=[f"c{number}" for number in range(n)],
        topic_ids=rng.integers(-1, 4, n),
        topic_history=rng.normal(0.0, 0.05, n),
        item_counts=rng.integers(1, 90, n),
        action_types=[f"a{number}" for number in range(types)],
        action_counts=rng.gamma(0.5, 9.0, (n, types)),
        importance=rng.gamma(0.5, 5.0, n),
        last_action_at=MADE - rng.integers(0, 90 * DAY, n),
        query_items=[f"i{number}" for number in range(int(offsets[-1]))],
        query_weights=np.ones(int(offsets[-1])),
        query_offsets=offsets,
    )
    if rng.random() < 0.1:
        return profile, None
    known = np.flatnonzero(rng.random(n) < 0.8)
    impressions = rng.gamma(0.5, [[5.0], [20.0]], (2, len(known)))
    reward = impressions * rng.uniform(-0.3, 0.9, impressions.shape)
    sums = Sums(np.stack((impressions[0], reward[0], impressions[1], reward[1], rng.gamma(0.3, 2.0, len(known)))))
    ids = [profile.cluster_ids[place] for place in known]
    return profile, ClusterRewards(cluster_ids=ids, as_of=MADE - HOUR, sums=sums)


def served(policy: str, learned: LinearModel, rng: np.random.Generator, number: int) -> Decision:
    """A decision as serving makes and logs it; the request may leave clusters out."""
    profile, rewards = user(rng)
    evidence = align(profile, rewards, MADE, HALF_LIVES)
    candidates = Candidates(
        actions=profile.actions,
        importance=profile.importance,
        evidence=evidence,
        features=featurize(profile, evidence, learned.prior, MADE, {}),
        prior=learned.prior,
        model=learned,
        exploration=learned.manifest.exploration,
    )
    caps, rows = query_caps(profile.query_offsets, 5.0), np.arange(len(profile))
    if rng.random() < 0.3:
        rows = np.sort(rng.choice(rows, int(rng.integers(1, len(rows) + 1)), replace=False))
        candidates, caps = candidates.take(rows), caps[rows]
    k, cluster = int(rng.integers(1, 21)), profile.cluster_ids[rows[0]]
    done = plan(policy, candidates, k, caps)
    return decision(
        number,
        at=MADE,
        policy=policy,
        model_version="1",
        k=k,
        cluster_ids=[profile.cluster_ids[row] for row in rows],
        features=candidates.features.tobytes(),
        feature_version=FEATURE_VERSION,
        scores=done.scores.tolist(),
        quotas=done.quotas.tolist(),
        caps=caps.tolist(),
        queries=[Query(item_id="i", cluster_id=cluster, propensity=0.5)],
        inputs=pack_policy_inputs(profile, evidence, rows),
    )


def outcomes(deployment: Deployment, policy: str, learned: LinearModel, count: int) -> pa.RecordBatch:
    """Decisions over the wire and through the log, as a join hands them to evaluation."""
    rng, settings = np.random.default_rng(0), deployment.settings
    decisions = [served(policy, learned, rng, number) for number in range(count)]
    decisions = [msgspec.msgpack.decode(msgspec.msgpack.encode(one), type=Decision) for one in decisions]
    write_decisions(settings, decisions)
    write_feedback(settings, [feedback("e", at=MADE + MINUTE)])
    assert join(settings, as_of=NOW).decisions == count
    return read_group(outcomes_file(settings), 0)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_the_quotas_of_a_log_are_those_that_serving_drew_from_to_the_last_bit(deployment: Deployment, policy: str) -> None:
    learned = model()
    record = outcomes(deployment, policy, learned, DECISIONS)
    quotas, logged = planned(record, Target(label=policy, policy=policy, model=learned)), record["quotas"].flatten().to_numpy()
    different = np.flatnonzero(quotas != logged)
    assert quotas.tobytes() == logged.tobytes(), f"{len(different)} of {len(logged)}, the first {different[:3]}"
    assert record.num_rows == DECISIONS


@pytest.mark.parametrize("changed", [model(budget=0.0102), model(mean=0.151)])
def test_another_budget_or_prior_gives_other_quotas(deployment: Deployment, changed: LinearModel) -> None:
    """2 % more of the budget, or another prior, moves nearly every quota that is below its cap."""
    record = outcomes(deployment, "bandit", model(), 500)
    logged, caps = (record[name].flatten().to_numpy() for name in ("quotas", "caps"))
    quotas = planned(record, Target(label="", policy="bandit", model=changed))
    assert (quotas != logged)[logged < 0.99 * caps].mean() > 0.9


def test_a_choice_of_no_queries_has_no_quotas_under_any_policy(deployment: Deployment) -> None:
    record = outcomes(deployment, "uniform", model(), 3)
    record = record.set_column(record.schema.get_field_index("k"), record.schema.field("k"), pa.array([0, 2, 0], pa.int32()))
    quotas, lengths = planned(record, Target(label="", policy="query_reward")), record["caps"].value_lengths().to_numpy()
    totals = np.add.reduceat(quotas, np.cumsum(lengths) - lengths)
    np.testing.assert_allclose(totals, [0.0, 2.0, 0.0])
