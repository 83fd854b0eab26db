"""Which of a user's items are the queries of this request: read, score, draw, log, return."""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from bandit.errors import DependencyAwayError, FeatureStoreError, InvalidValueError
from bandit.evidence import align
from bandit.experiment import arm_of
from bandit.featurize import FEATURE_VERSION, featurize
from bandit.inputs import pack_inputs
from bandit.policies import FALLBACK, Candidates, plan
from bandit.records import Decision, Query, uuid7
from bandit.sampling import inclusion, item_propensities, systematic
from bandit.settings import DEFAULT_FILE, Settings, load_settings
from bandit.types import ClusterRewards, Floats, Prior, Profile, Rate
from serving.connection import connect
from serving.decision_log import DecisionLog
from serving.features import FeatureReader
from serving.modes import EXISTING, Existing, check_mode, served_as_passed
from serving.served_model import ServedModel

log = logging.getLogger(__name__)

_UNTRAINED_MEAN = 0.1  # prior mean while no model has brought one, reward per impression


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The queries of one request.

    decision_id: to be echoed by the feedback; empty when nothing was decided.
    degraded: the features or the log could not be reached; `reason` says what happened, also for an empty or short selection.
    logged: the decision is in the log, so that its feedback can be attributed.
    quotas: expected queries of each candidate cluster, what was drawn from.
    """

    decision_id: str
    queries: Sequence[Query]
    policy: str
    model_version: str
    degraded: bool = False
    logged: bool = True
    reason: str = ""
    quotas: Mapping[str, float] = field(default_factory=dict)


class QuerySelector:
    """The library that a retrieval service calls. One selector per process serves all its threads."""

    def __init__(self, settings: Settings, reader: FeatureReader, decisions: DecisionLog, model: ServedModel) -> None:
        """Put together from its parts; `QuerySelector.open` makes them from the settings file."""
        self._settings, self._reader, self._decisions, self._model = settings, reader, decisions, model
        self._shares = settings.experiment.shares()
        self._half_lives = settings.reward.half_lives()
        self._exploration = settings.policy.exploration()
        self._untrained = Prior(rate=Rate(mean=_UNTRAINED_MEAN, strength=settings.policy.prior_strength))
        self._remembering = threading.Lock()
        self._remembered: OrderedDict[str, tuple[Profile, ClusterRewards | None]] = OrderedDict()

    @classmethod
    def open(cls, path: str | Path = DEFAULT_FILE) -> Self:
        """Read the settings file and connect.

        Raises: InvalidSettingError, DependencyAwayError when Redis does not answer, FeatureStoreError when nothing was applied yet.
        """
        settings = load_settings(path)
        timeout = settings.serving.deadline_ms / 1000.0
        reader = FeatureReader(settings.feature_repo_path, settings.redis_url, timeout=timeout)
        client = connect(settings.redis_url, timeout=timeout)
        model = ServedModel(client, poll_seconds=settings.serving.model_poll_seconds)
        return cls(settings, reader, DecisionLog(client, settings.redis_url), model)

    def __enter__(self) -> Self:
        """Nothing to do: an open selector is ready."""
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Stop watching for models. Every decision that was returned is in the log already."""
        self._model.close()

    def refresh_model(self) -> str:
        """Take over a newly promoted model now instead of at the next look; returns the version that serves."""
        self._model.refresh()
        return self.model_version

    @property
    def model_version(self) -> str:
        """Version of the model that serves now, empty without one."""
        return self._model.current[0] if self._model.current else ""

    def select(
        self,
        user_id: str,
        k: int,
        context: Mapping[str, str] | None = None,
        *,
        caps: Mapping[str, int] | None = None,
        fallback: Mapping[str, Sequence[str]] | None = None,
        existing: Existing | None = None,
        now: int | None = None,
        seed: int | None = None,
    ) -> Selection:
        """Choose at most k queries, and log the decision before returning.

        Args:
            user_id: as in the features.
            k: queries wanted, 1 or more.
            context: of the request; logged.
            caps: most queries of each cluster in this request; a cluster that is not named is not a candidate. None: all are.
            fallback: item ids by cluster id, to choose from when the features cannot be read and the user was not seen before.
            existing: your own choice for this request, which the modes `log_only` and `apprentice` serve and log.
            now: UTC microseconds; the clock if None.
            seed: of the draw, 63 bits; random if None. The same features, model and seed give the same queries.

        Returns: never raises for an unknown user, or because Redis is slow or away; `reason` says what happened.

        Raises: InvalidValueError for k <= 0 or an empty user_id.
        """
        if not isinstance(k, int) or isinstance(k, bool) or k <= 0:
            raise InvalidValueError("k", expected="a whole number of queries, 1 or more", received=k)
        if not user_id or not isinstance(user_id, str):
            raise InvalidValueError("user_id", expected="a string that is not empty", received=user_id)
        check_mode(self._settings.serving.mode, existing)
        now = time.time_ns() // 1000 if now is None else now
        seed = secrets.randbits(63) if seed is None else seed
        reason, reachable = "", True
        try:
            profile, rewards = self._reader.read(user_id)
            self._remember(user_id, profile, rewards)
        except (DependencyAwayError, FeatureStoreError) as error:
            log.warning("select degraded: %s", error)
            reason, reachable = str(error), not isinstance(error, DependencyAwayError)
            profile, rewards = self._remembered.get(user_id) or (_profile_of(fallback), None)
        if existing is not None and not existing.covered_by(profile.cluster_ids if profile else ()):
            return unlogged(existing, reason or "unknown user or clusters: served as passed, not logged", degraded=bool(reason))
        if profile is None or not len(profile):
            return self._nothing(reason or ("unknown user" if profile is None else "the user has no clusters"), degraded=bool(reason))
        decision = self._decide(user_id, k, dict(context or {}), (profile, rewards), caps, now, seed, degraded=bool(reason))
        if decision is None:
            return self._nothing(reason or "no cluster may be queried", degraded=bool(reason))
        if existing is not None:
            if not existing.covered_by(decision.cluster_ids):
                return unlogged(existing, "caps leave out clusters of the choice: served as passed, not logged", degraded=bool(reason))
            decision = served_as_passed(decision, existing, self._settings.serving.mode)
        logged = reachable  # a log that is as far away as the features would take another deadline to say so
        try:
            if reachable:
                self._decisions.append(decision)
        except DependencyAwayError as error:
            log.warning("decision not logged: %s", error)
            reason, logged = reason or str(error), False
        if not reason and len(decision.queries) < k:
            reason = f"{len(decision.queries)} of {k} queries: the clusters have no more"
        return Selection(
            decision_id=decision.decision_id,
            queries=decision.queries,
            policy=decision.policy,
            model_version=decision.model_version,
            degraded=decision.degraded or not logged,
            logged=logged,
            reason=reason,
            quotas=dict(zip(decision.cluster_ids, decision.quotas, strict=True)),
        )

    def _decide(
        self,
        user_id: str,
        k: int,
        context: dict[str, str],
        row: tuple[Profile, ClusterRewards | None],
        caps: Mapping[str, int] | None,
        now: int,
        seed: int,
        *,
        degraded: bool,
    ) -> Decision | None:
        profile, rewards = row
        version, model = self._model.current or ("", None)
        arm, policy = self._arm(user_id)
        if policy == "bandit" and model is None:
            policy = FALLBACK
        prior = model.prior if model else self._untrained
        evidence = align(profile, rewards, now, self._half_lives)
        features = featurize(profile, evidence, prior, now, context)
        limit = np.minimum(profile.query_counts(), self._settings.policy.max_queries_per_cluster).astype(np.float64)
        if caps is not None:
            limit = np.minimum(limit, [max(caps.get(cluster_id, 0), 0) for cluster_id in profile.cluster_ids])
        rows = np.flatnonzero(limit > 0.0)
        if not len(rows):
            return None
        candidates = Candidates(
            actions=profile.action_counts.sum(axis=1)[rows],
            importance=profile.importance[rows],
            evidence=evidence.take(rows),
            features=features[rows],
            prior=prior,
            model=model,
            exploration=model.manifest.exploration if model else self._exploration,
        )
        planned = plan(policy, candidates, k, limit[rows])
        rng = np.random.default_rng(seed)
        queries = draw(profile, rows, planned.quotas, rng)
        return Decision(
            decision_id=uuid7(now, hashlib.blake2b(f"{user_id}\0{seed}".encode(), digest_size=10).digest()),
            user_id=user_id,
            decided_at=now,
            policy=policy,
            model_version=version,
            k=k,
            seed=seed,
            feature_version=FEATURE_VERSION,
            cluster_ids=[profile.cluster_ids[row] for row in rows],
            features=candidates.features.astype("<f4").tobytes(),
            scores=planned.scores.tolist(),
            quotas=planned.quotas.tolist(),
            caps=limit[rows].tolist(),
            queries=queries,
            context=context,
            degraded=degraded,
            inputs=pack_inputs(profile, evidence, rows),
            arm=arm,
        )

    def _arm(self, user_id: str) -> tuple[str, str]:
        """The user's arm of the experiment, empty without one, and the policy that chooses there."""
        arm = arm_of(user_id, self._settings.experiment.salt, self._shares) if self._shares else ""
        return arm, self._settings.experiment.arms[arm].policy if arm else self._settings.policy.name

    def _remember(self, user_id: str, profile: Profile | None, rewards: ClusterRewards | None) -> None:
        if profile is None or not self._settings.serving.remembered_profiles:
            return
        with self._remembering:
            self._remembered[user_id] = (profile, rewards)
            self._remembered.move_to_end(user_id)
            while len(self._remembered) > self._settings.serving.remembered_profiles:
                self._remembered.popitem(last=False)

    def _nothing(self, reason: str, *, degraded: bool) -> Selection:
        return Selection(
            decision_id="",
            queries=(),
            policy=self._settings.policy.name,
            model_version=self.model_version,
            degraded=degraded,
            logged=False,
            reason=reason,
        )


def unlogged(existing: Existing, reason: str, *, degraded: bool) -> Selection:
    """A caller's own choice for a user who has no such clusters: it is served all the same."""
    return Selection(
        decision_id="",
        queries=existing.queries,
        policy=EXISTING,
        model_version="",
        degraded=degraded,
        logged=False,
        reason=reason,
        quotas=existing.quotas,
    )


def draw(profile: Profile, rows: np.ndarray[tuple[int], np.dtype[np.int64]], quotas: Floats, rng: np.random.Generator) -> list[Query]:
    """Draw queries: how many of each cluster by systematic sampling over the quotas, then which items in the same way.

    Args:
        profile: the user's clusters.
        rows: positions of the candidates in the profile, (n,).
        quotas: expected queries of each candidate, (n,).
        rng: the only source of randomness.

    Returns: queries, each with its exact inclusion probability.
    """
    counts = systematic(quotas, rng)
    queries = []
    for position in np.flatnonzero(counts):
        row = int(rows[position])
        items, weights = profile.queries_of(row)
        propensities = item_propensities(weights, float(quotas[position]))
        taken = systematic(inclusion(weights, int(counts[position])), rng)
        queries += [
            Query(item_id=items[item], cluster_id=profile.cluster_ids[row], propensity=min(float(propensities[item]), 1.0))
            for item in np.flatnonzero(taken)
        ]
    return queries


def _profile_of(fallback: Mapping[str, Sequence[str]] | None) -> Profile | None:
    """A profile that knows nothing but which items there are."""
    if not fallback:
        return None
    n, items = len(fallback), [item for group in fallback.values() for item in group]
    return Profile(
        cluster_ids=list(fallback),
        topic_ids=np.full(n, -1),
        topic_history=np.zeros(n),
        item_counts=np.array([len(group) for group in fallback.values()], np.int64),
        action_types=[],
        action_counts=np.zeros((n, 0)),
        importance=np.ones(n),
        last_action_at=np.zeros(n, np.int64),
        query_items=items,
        query_weights=np.ones(len(items)),
        query_offsets=np.cumsum([0, *(len(group) for group in fallback.values())]),
    )
