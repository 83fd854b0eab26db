"""One request without its input and output: what is asked of Redis, and what is made of the answers."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Sequence
from typing import Any, TypeAlias

import hiredis
import numpy as np

from bandit.errors import DeadlineExceededError, DependencyUnavailableError, FeatureStoreError, InvalidValueError
from bandit.model.featurize import FEATURE_VERSION, featurize
from bandit.policy.arms import arm_of
from bandit.policy.logged_inputs import pack_policy_inputs
from bandit.policy.quotas import query_caps
from bandit.policy.scores import FALLBACK, Candidates, plan
from bandit.records import Decision
from bandit.rewards.decay import align
from bandit.settings.load import Settings
from bandit.types import ClusterRewards, Prior, Profile, Rate
from serving.decision_log import append_command
from serving.drawing import draw
from serving.features.last_seen import ProfileCache, Row, profile_of
from serving.features.reader import FeatureReader
from serving.modes import served_as_passed, unlogged
from serving.request import Request
from serving.selection import Selection
from serving.served_model import ServedModel

log = logging.getLogger(__name__)

_UNTRAINED_MEAN = 0.1  # prior mean while no model has brought one, reward per impression

# Yields commands for Redis and is sent their answers; returns the selection. Between two stages of its work it yields None: who runs many
# requests does one stage of all of them before the next, for a processor repeats what it has just done in half the time.
Run: TypeAlias = Generator[bytes | None, Any, Selection]

Going: TypeAlias = list[tuple[int, Run, Any]]  # runs by number, each with its last command or the answer to it


class Steps:
    """The way of every request; what differs between them is in `Request`."""

    def __init__(self, settings: Settings, reader: FeatureReader, model: ServedModel) -> None:
        """See `QuerySelector`."""
        self._settings, self._reader, self._model = settings, reader, model
        self._shares = settings.experiment.shares()
        self._half_lives = settings.reward.half_lives()
        self._exploration = settings.policy.exploration()
        self._untrained = Prior(rate=Rate(mean=_UNTRAINED_MEAN, strength=settings.policy.prior_strength))
        self._profiles = ProfileCache(settings.serving.cached_profiles)
        self._deadline = settings.serving.deadline_ms / 1000.0

    def of(self, request: Request) -> Run:
        """Read, score, draw, log; see `Run`. An error in place of an answer says that Redis could not be asked."""
        reason, reachable = "", True
        answer = yield self._reader.command(request.user_id)
        try:
            if isinstance(answer, DependencyUnavailableError):
                raise answer
            row = self._reader.row(request.user_id, answer)
            yield None
            self._profiles.keep(request.user_id, row)
        except (DependencyUnavailableError, FeatureStoreError) as error:
            log.debug("select degraded: %s", error)
            reason, reachable = str(error), not isinstance(error, DependencyUnavailableError)
            late = (
                isinstance(error, DeadlineExceededError) or time.monotonic() > request.started + self._deadline
            )  # a draw would make it later
            row = (None, None) if late else self._profiles.of(request.user_id) or (profile_of(request.fallback), None)
        decision = yield from self._decision_or_nothing(request, row, reason)
        if isinstance(decision, Selection):
            return decision
        logged = reachable  # a log that is as far away as the features would take another deadline to say so
        if reachable:
            yield None
            answer = yield append_command(decision)
            if isinstance(answer, DependencyUnavailableError | hiredis.ReplyError):
                log.debug("decision not logged: %s", answer)
                reason, logged = reason or str(answer), False
        if not reason and len(decision.queries) < request.k:
            reason = f"{len(decision.queries)} of {request.k} queries: the clusters have no more"
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

    def _decision_or_nothing(self, request: Request, row: Row, reason: str) -> Generator[None, None, Decision | Selection]:
        """What is to be logged, or the selection of a request for which there is nothing to log."""
        (profile, rewards), existing, degraded = row, request.existing, bool(reason)
        if existing is not None and not existing.covered_by(profile.cluster_ids if profile else ()):
            return unlogged(existing, reason or "unknown user or clusters: served as passed, not logged", degraded=degraded)
        if profile is None or not len(profile):
            return self._nothing(reason or ("unknown user" if profile is None else "the user has no clusters"), degraded=degraded)
        try:
            decision = yield from self._decide(request, (profile, rewards), degraded=degraded)
        except InvalidValueError as error:
            log.error("decision refused: %s", error)  # noqa: TRY400 -- one line
            return self._nothing(f"decision refused: {error}", degraded=True)
        if decision is None:
            return self._nothing(reason or "no cluster may be queried", degraded=degraded)
        if existing is not None and not existing.covered_by(decision.cluster_ids):
            return unlogged(existing, "caps leave out clusters of the choice: served as passed, not logged", degraded=degraded)
        return decision if existing is None else served_as_passed(decision, existing, self._settings.serving.mode)

    def _decide(
        self,
        request: Request,
        row: tuple[Profile, ClusterRewards | None],
        *,
        degraded: bool,
    ) -> Generator[None, None, Decision | None]:
        """The decision, None when no cluster may be queried. Raises: InvalidValueError for one that must not leave the process."""
        profile, rewards = row
        k, now, caps = request.k, request.now, request.caps
        version, model = self._model.current or ("", None)
        arm, policy = self._arm(request.user_id)
        if policy == "bandit" and model is None:
            policy = FALLBACK
        prior = model.prior if model else self._untrained
        evidence = align(profile, rewards, now, self._half_lives)
        yield
        features = featurize(profile, evidence, prior, now, request.context)
        yield
        limit = query_caps(profile.query_offsets, float(self._settings.policy.max_queries_per_cluster))
        if caps is not None:
            limit = np.minimum(limit, [max(caps.get(cluster_id, 0), 0) for cluster_id in profile.cluster_ids])
        candidates = Candidates(
            actions=profile.actions,
            importance=profile.importance,
            evidence=evidence,
            features=features,
            prior=prior,
            model=model,
            exploration=model.manifest.exploration if model else self._exploration,
        )
        rows: Sequence[int] = range(len(profile))
        cluster_ids, kept = profile.cluster_ids, None
        if not limit.min() > 0.0:
            kept = np.flatnonzero(limit > 0.0)
            if not len(kept):
                return None
            rows, candidates, limit = kept.tolist(), candidates.take(kept), limit[kept]
            cluster_ids = [cluster_ids[row] for row in rows]
        yield
        planned = plan(policy, candidates, k, limit)
        yield
        quotas = planned.quotas.tolist()
        queries = draw(profile, rows, quotas, request.rng)
        yield
        return Decision(
            decision_id=request.decision_id,
            user_id=request.user_id,
            decided_at=now,
            policy=policy,
            model_version=version,
            k=k,
            seed=request.seed,
            feature_version=FEATURE_VERSION,
            cluster_ids=cluster_ids,
            features=candidates.features.astype("<f4", copy=False).tobytes(),
            scores=planned.scores.tolist(),
            quotas=quotas,
            caps=limit.tolist(),
            queries=queries,
            context=request.context,
            degraded=degraded,
            inputs=pack_policy_inputs(profile, evidence, kept),
            arm=arm,
        )

    def _arm(self, user_id: str) -> tuple[str, str]:
        """The user's arm of the experiment, empty without one, and the policy that chooses there."""
        arm = arm_of(user_id, self._settings.experiment.salt, self._shares) if self._shares else ""
        return arm, self._settings.experiment.arms[arm].policy if arm else self._settings.policy.name

    def _nothing(self, reason: str, *, degraded: bool) -> Selection:
        return Selection(
            decision_id="",
            queries=(),
            policy=self._settings.policy.name,
            model_version=self._model.current[0] if self._model.current else "",
            degraded=degraded,
            logged=False,
            reason=reason,
        )


def onward(run: Run, answer: Any = None) -> bytes:  # noqa: ANN401 -- Redis' answer
    """Go on to the next command. Raises: StopIteration with the selection when there is none."""
    command = run.send(answer)
    while command is None:
        command = next(run)
    return command


def onward_together(runs: Going, made: dict[int, Selection]) -> Going:
    """`onward` for many, one stage of all after the other.

    Args:
        runs: each with its number, and the answer to its last command.
        made: where the selections of those that end go, by number.

    Returns: those that have a command, and it.
    """
    waiting: Going = []
    while runs:
        paused: Going = []
        for number, run, answer in runs:
            try:
                command = run.send(answer)
            except StopIteration as done:
                made[number] = done.value
                continue
            (paused if command is None else waiting).append((number, run, command))
        runs = paused
    return waiting
