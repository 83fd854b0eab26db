"""Which of a user's items are the queries of this request: read, score, draw, log, return."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import hiredis
import numpy as np

from bandit.errors import DependencyAwayError, FeatureStoreError, InvalidValueError, TooLateError
from bandit.evidence import align
from bandit.experiment import arm_of
from bandit.featurize import FEATURE_VERSION, featurize
from bandit.inputs import pack_inputs
from bandit.policies import FALLBACK, Candidates, plan
from bandit.quotas import query_caps
from bandit.records import Decision
from bandit.settings import DEFAULT_FILE, Settings, load_settings
from bandit.types import ClusterRewards, Prior, Profile, Rate
from serving.address import Address
from serving.async_wire import AsyncWire
from serving.breaker import CircuitBreaker
from serving.connection import connect
from serving.decision_log import append_command
from serving.drawing import draw
from serving.features import FeatureReader
from serving.modes import Existing, check_mode, served_as_passed, unlogged
from serving.remembered import Remembered, Row, profile_of
from serving.request import Request
from serving.selection import Selection
from serving.served_model import ServedModel
from serving.wire import Wire

log = logging.getLogger(__name__)

_UNTRAINED_MEAN = 0.1  # prior mean while no model has brought one, reward per impression
# Shares of the deadline. One caller after the other finds that Redis is away, so that there is time left to answer each without it.
_PATIENCE_SHARE = 0.5  # that one exchange may take
_READ_SHARE = 0.75  # that may have passed when the features are there
_LOG_SHARE = 0.9  # that may have passed when the log has answered
_TURN_SHARE = 0.95  # that may have passed when who waited for a turn is let go
_AT_ONCE = 100  # users whose features one pipeline reads

Steps: TypeAlias = Generator[bytes, Any, Selection]
Observer: TypeAlias = Callable[[Selection, float], None]


class QuerySelector:
    """The library that a retrieval service calls. One selector per process serves all its threads."""

    def __init__(self, settings: Settings, reader: FeatureReader, model: ServedModel) -> None:
        """Put together from its parts; `QuerySelector.open` makes them from the settings file."""
        self._settings, self._reader, self._model = settings, reader, model
        self._shares = settings.experiment.shares()
        self._half_lives = settings.reward.half_lives()
        self._exploration = settings.policy.exploration()
        self._untrained = Prior(rate=Rate(mean=_UNTRAINED_MEAN, strength=settings.policy.prior_strength))
        self._remembered = Remembered(settings.serving.remembered_profiles)
        self._deadline = settings.serving.deadline_ms / 1000.0
        patience = _PATIENCE_SHARE * self._deadline
        address, connections = Address.of(settings.redis_url), settings.serving.connections
        self.breaker = CircuitBreaker(failures=settings.serving.breaker_failures, pause=settings.serving.breaker_seconds)
        self._wire = Wire(address, self.breaker, connections=connections, patience=patience)
        self._async_wire = AsyncWire(address, self.breaker, in_flight=connections, patience=patience)
        self.observer: Observer | None = None  # called with each selection and the seconds that it took

    @classmethod
    def open(cls, path: str | Path = DEFAULT_FILE) -> Self:
        """Read the settings file and connect.

        Raises: InvalidSettingError, DependencyAwayError when Redis does not answer, FeatureStoreError when nothing was applied yet.
        """
        settings = load_settings(path)
        timeout = settings.serving.deadline_ms / 1000.0
        reader = FeatureReader(settings.feature_repo_path, settings.redis_url, timeout=timeout)
        client = connect(settings.redis_url, timeout=timeout)
        return cls(settings, reader, ServedModel(client, poll_seconds=settings.serving.model_poll_seconds))

    def __enter__(self) -> Self:
        """Nothing to do: an open selector is ready."""
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Stop watching for models, and disconnect. Every decision that was returned is in the log already."""
        self._model.close()
        self._reader.close()
        self._wire.close()

    def refresh_model(self) -> str:
        """Take over a newly promoted model now instead of at the next look; returns the version that serves."""
        self._model.refresh()
        return self.model_version

    @property
    def model_version(self) -> str:
        """Version of the model that serves now, empty without one."""
        return self._model.current[0] if self._model.current else ""

    @property
    def model(self) -> ServedModel:
        """The model that serves, and where it comes from."""
        return self._model

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
        request = Request.of(user_id, k, context, caps=caps, fallback=fallback, existing=existing, now=now, seed=seed)
        check_mode(self._settings.serving.mode, existing)
        steps = self._steps(request)
        command, deadline = next(steps), request.started + _READ_SHARE * self._deadline
        with self._wire.turn(deadline, request.started + _TURN_SHARE * self._deadline) as turn:
            while True:
                answer: Any
                try:
                    (answer,) = turn.exchange(command, 1, deadline, request.prepare)
                except DependencyAwayError as error:
                    answer = error
                try:
                    command, deadline = steps.send(answer), request.started + _LOG_SHARE * self._deadline
                except StopIteration as done:
                    selection: Selection = done.value
                    break
        return self._done(request, selection)

    async def select_async(
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
        """`select` for asyncio: the same decision, and nothing blocks the loop. A selector serves one loop."""
        request = Request.of(user_id, k, context, caps=caps, fallback=fallback, existing=existing, now=now, seed=seed)
        check_mode(self._settings.serving.mode, existing)
        steps = self._steps(request)
        command, deadline = next(steps), request.started + _READ_SHARE * self._deadline
        async with self._async_wire.turn(deadline, request.started + _TURN_SHARE * self._deadline) as turn:
            while True:
                answer: Any
                try:
                    (answer,) = await turn.exchange(command, 1, deadline)
                except DependencyAwayError as error:
                    answer = error
                try:
                    command, deadline = steps.send(answer), request.started + _LOG_SHARE * self._deadline
                except StopIteration as done:
                    selection: Selection = done.value
                    break
        return self._done(request, selection)

    async def close_async(self) -> None:
        """`close`, from the loop that `select_async` was called on."""
        self._async_wire.close()
        self.close()

    def select_many(
        self,
        user_ids: Sequence[str],
        k: int,
        context: Mapping[str, str] | None = None,
        *,
        now: int | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[Selection]:
        """Choose for many users, each as `select` would with the same seed: a pipeline reads them, another one logs them.

        Args:
            user_ids: as in the features; one that comes twice gets two decisions.
            k: queries wanted of each.
            context: of all of them; logged.
            now: UTC microseconds; the clock if None.
            seeds: one for each user; random if None.

        Returns: selections in the order of the users. Each hundred of users has the deadline of one call.

        Raises: InvalidValueError as `select`, or for another number of seeds than users.
        """
        if seeds is not None and len(seeds) != len(user_ids):
            raise InvalidValueError("seeds", expected=f"one for each of {len(user_ids)} users", received=len(seeds))
        check_mode(self._settings.serving.mode, None)
        selections: list[Selection] = []
        for start in range(0, len(user_ids), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            given = seeds[part] if seeds is not None else [None] * len(user_ids[part])
            requests = [Request.of(user, k, context, now=now, seed=seed) for user, seed in zip(user_ids[part], given, strict=True)]
            selections += self._select_part(requests)
        return selections

    def _select_part(self, requests: Sequence[Request]) -> list[Selection]:
        started = time.monotonic()
        running = [(request, self._steps(request)) for request in requests]
        waiting = [(steps, next(steps)) for _, steps in running]
        made: dict[Steps, Selection] = {}
        with self._wire.turn(started + _READ_SHARE * self._deadline, started + _TURN_SHARE * self._deadline) as turn:
            for share in (_READ_SHARE, _LOG_SHARE):
                answers: Sequence[Any]
                try:
                    answers = turn.exchange(b"".join(command for _, command in waiting), len(waiting), started + share * self._deadline)
                except DependencyAwayError as error:
                    answers = [error] * len(waiting)
                following = []
                for (steps, _), answer in zip(waiting, answers, strict=True):
                    try:
                        following.append((steps, steps.send(answer)))
                    except StopIteration as done:
                        made[steps] = done.value
                waiting = following
                if not waiting:
                    break
        return [self._done(request, made[steps]) for request, steps in running]

    def _done(self, request: Request, selection: Selection) -> Selection:
        if self.observer is not None:
            self.observer(selection, time.monotonic() - request.started)
        return selection

    def _steps(self, request: Request) -> Steps:
        """One request, without its input and output: gives the command to send, is sent what came back, and returns the selection."""
        reason, reachable = "", True
        answer = yield self._reader.command(request.user_id)
        try:
            if isinstance(answer, DependencyAwayError):
                raise answer
            row = self._reader.row(request.user_id, answer)
            self._remembered.keep(request.user_id, row)
        except (DependencyAwayError, FeatureStoreError) as error:
            log.debug("select degraded: %s", error)
            reason, reachable = str(error), not isinstance(error, DependencyAwayError)
            late = isinstance(error, TooLateError) or time.monotonic() > request.started + self._deadline  # a draw would make it later
            row = (None, None) if late else self._remembered.of(request.user_id) or (profile_of(request.fallback), None)
        decision = self._decision_or_nothing(request, row, reason)
        if isinstance(decision, Selection):
            return decision
        logged = reachable  # a log that is as far away as the features would take another deadline to say so
        if reachable:
            answer = yield append_command(decision)
            if isinstance(answer, DependencyAwayError | hiredis.ReplyError):
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

    def _decision_or_nothing(self, request: Request, row: Row, reason: str) -> Decision | Selection:
        """What is to be logged, or the selection of a request for which there is nothing to log."""
        (profile, rewards), existing, degraded = row, request.existing, bool(reason)
        if existing is not None and not existing.covered_by(profile.cluster_ids if profile else ()):
            return unlogged(existing, reason or "unknown user or clusters: served as passed, not logged", degraded=degraded)
        if profile is None or not len(profile):
            return self._nothing(reason or ("unknown user" if profile is None else "the user has no clusters"), degraded=degraded)
        try:
            decision = self._decide(request, (profile, rewards), degraded=degraded)
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
    ) -> Decision | None:
        """The decision, None when no cluster may be queried. Raises: InvalidValueError for one that must not leave the process."""
        profile, rewards = row
        k, now, caps = request.k, request.now, request.caps
        version, model = self._model.current or ("", None)
        arm, policy = self._arm(request.user_id)
        if policy == "bandit" and model is None:
            policy = FALLBACK
        prior = model.prior if model else self._untrained
        evidence = align(profile, rewards, now, self._half_lives)
        features = featurize(profile, evidence, prior, now, request.context)
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
        planned = plan(policy, candidates, k, limit)
        quotas = planned.quotas.tolist()
        queries = draw(profile, rows, quotas, request.rng)
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
            inputs=pack_inputs(profile, evidence, kept),
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
            model_version=self.model_version,
            degraded=degraded,
            logged=False,
            reason=reason,
        )
