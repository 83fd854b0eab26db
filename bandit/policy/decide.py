"""A decision from what was read: score, plan, draw. Pure: no input or output, and all randomness comes with the request."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias, TypeVar

import numpy as np

from bandit.errors import InvalidValueError
from bandit.model.exploration import Exploration
from bandit.model.featurize import FEATURE_VERSION, featurize
from bandit.model.linear_model import LinearModel
from bandit.policy.arms import arm_of
from bandit.policy.logged_inputs import pack_policy_inputs
from bandit.policy.quotas import query_caps
from bandit.policy.sampling import draw_counts, draw_items
from bandit.policy.scores import FALLBACK, Candidates, Plan, plan
from bandit.policy.splitmix import SplitMix64
from bandit.records import Decision, Query, uuid7
from bandit.rewards.decay import HalfLives, align
from bandit.types import ClusterRewards, Floats, Ints, Prior, Profile, Sums

VersionedModel: TypeAlias = tuple[str, LinearModel]
_Input = TypeVar("_Input")
_Output = TypeVar("_Output")


@dataclass(frozen=True, kw_only=True)
class DecisionRequest:
    """Who wants how many queries: `now` in UTC microseconds, `seed` of 63 bits, `context` as it is logged.

    caps: most queries of each cluster, by id; a cluster that it does not name is no candidate. None: all clusters are.
    """

    user_id: str
    k: int
    context: dict[str, str]
    caps: Mapping[str, int] | None
    now: int
    seed: int

    @cached_property
    def rng(self) -> SplitMix64:
        """The randomness of this request, from its seed alone."""
        return SplitMix64(self.seed)

    @cached_property
    def decision_id(self) -> str:
        """The same for the same user, seed and time."""
        return uuid7(self.now, hashlib.blake2b(f"{self.user_id}\0{self.seed}".encode(), digest_size=10).digest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the settings say about decisions. `untrained` and `exploration` hold until a model brings its own."""

    policy: str
    arm_policies: Mapping[str, str]
    arm_shares: Mapping[str, float]
    salt: str
    half_lives: HalfLives
    untrained: Prior
    exploration: Exploration
    queries_per_cluster: float

    def arm_and_policy(self, user_id: str) -> tuple[str, str]:
        """The user's arm of the experiment, empty without one, and the policy that chooses there."""
        arm = arm_of(user_id, self.salt, self.arm_shares) if self.arm_shares else ""
        return arm, self.arm_policies[arm] if arm else self.policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One request and what was read for it; `degraded`: not from the online store."""

    request: DecisionRequest
    profile: Profile
    rewards: ClusterRewards | None
    degraded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The clusters of a case that may be queried: `rows` are their positions in the profile, None for all."""

    case: Case
    arm: str
    policy: str
    evidence: Sums
    rows: Ints | None
    candidates: Candidates
    caps: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Scores and quotas of the candidates, and how many queries each gives."""

    plan: Plan
    quotas: list[float]
    counts: list[int]


def decide(case: Case, model: VersionedModel | None, rules: Rules) -> Decision | None:
    """The decision, None when no cluster may be queried.

    Raises: InvalidValueError for a decision that must not leave the process.
    """
    scored = score(case, model, rules)
    return None if scored is None else draw(scored, choose_scored(scored), model)


def decide_many(cases: Iterable[Case], model: VersionedModel | None, rules: Rules) -> list[Decision | InvalidValueError | None]:
    """`decide` for each case, one stage of all cases after the other: a processor repeats what it has just done in half the time."""
    scored = _each(lambda case: score(case, model, rules), cases)
    chosen = _each(lambda one: None if one is None else (one, choose_scored(one)), scored)
    return _each(lambda pair: None if pair is None else draw(*pair, model), chosen)


def _each(stage: Callable[[_Input], _Output], inputs: Iterable[_Input | InvalidValueError]) -> list[_Output | InvalidValueError]:
    """The stage of each input; an input that was refused before stays so, and the others go on."""
    outputs: list[_Output | InvalidValueError] = []
    for value in inputs:
        try:
            outputs.append(value if isinstance(value, InvalidValueError) else stage(value))
        except InvalidValueError as error:
            outputs.append(error)
    return outputs


def score(case: Case, model: VersionedModel | None, rules: Rules) -> Scored | None:
    """Evidence, features and caps of the clusters that may be queried; None when there is no such cluster."""
    request, profile = case.request, case.profile
    arm, policy = rules.arm_and_policy(request.user_id)
    if policy == "bandit" and model is None:
        policy = FALLBACK
    learned = model[1] if model else None
    prior = learned.prior if learned else rules.untrained
    evidence = align(profile, case.rewards, request.now, rules.half_lives)
    candidates = Candidates(
        actions=profile.actions,
        importance=profile.importance,
        evidence=evidence,
        features=featurize(profile, evidence, prior, request.now, request.context),
        prior=prior,
        model=learned,
        exploration=learned.manifest.exploration if learned else rules.exploration,
    )
    caps, rows = query_caps(profile.query_offsets, rules.queries_per_cluster), None
    if request.caps is not None:
        caps = np.minimum(caps, [max(request.caps.get(cluster_id, 0), 0) for cluster_id in profile.cluster_ids])
    if not caps.min() > 0.0:
        rows = np.flatnonzero(caps > 0.0)
        if not len(rows):
            return None
        candidates, caps = candidates.take(rows), caps[rows]
    return Scored(case=case, arm=arm, policy=policy, evidence=evidence, rows=rows, candidates=candidates, caps=caps)


def choose(policy: str, candidates: Candidates, k: int, caps: Floats, rng: SplitMix64) -> Choice:
    """Scores, quotas, and how many queries each cluster gives, by systematic sampling over the quotas.

    Raises: InvalidValueError as `bandit.policy.scores.plan` does.
    """
    planned = plan(policy, candidates, k, caps)
    quotas = planned.quotas.tolist()
    return Choice(plan=planned, quotas=quotas, counts=draw_counts(quotas, rng.random(len(quotas))))


def choose_scored(scored: Scored) -> Choice:
    """`choose` for a case."""
    request = scored.case.request
    return choose(scored.policy, scored.candidates, request.k, scored.caps, request.rng)


def draw(scored: Scored, choice: Choice, model: VersionedModel | None) -> Decision:
    """Which items each cluster gives, and all of it as it is logged.

    Raises: InvalidValueError for item weights that are not finite numbers above 0.
    """
    request, profile = scored.case.request, scored.case.profile
    rows: Sequence[int] = range(len(profile)) if scored.rows is None else scored.rows.tolist()
    cluster_ids, planned = profile.cluster_ids, choice.plan
    return Decision(
        decision_id=request.decision_id,
        user_id=request.user_id,
        decided_at=request.now,
        policy=scored.policy,
        model_version=model[0] if model else "",
        k=request.k,
        seed=request.seed,
        feature_version=FEATURE_VERSION,
        cluster_ids=cluster_ids if scored.rows is None else [cluster_ids[row] for row in rows],
        features=scored.candidates.features.astype("<f4", copy=False).tobytes(),
        scores=planned.scores.tolist(),
        quotas=choice.quotas,
        caps=scored.caps.tolist(),
        queries=draw_queries(profile, rows, choice, request.rng),
        context=request.context,
        degraded=scored.case.degraded,
        inputs=pack_policy_inputs(profile, scored.evidence, scored.rows),
        arm=scored.arm,
    )


def draw_queries(profile: Profile, rows: Sequence[int], choice: Choice, rng: SplitMix64) -> list[Query]:
    """Queries, each with its exact inclusion probability, in the order of the clusters and of their items.

    Raises: InvalidValueError for item weights that are not finite numbers above 0.
    """
    cluster_ids, items = profile.cluster_ids, profile.query_items
    return [
        Query(item_id=items[item], cluster_id=cluster_ids[row], propensity=propensity)
        for row, item, propensity in draw_items(
            rows, choice.quotas, choice.counts, profile.query_offsets.tolist(), profile.query_weights, rng
        )
    ]
