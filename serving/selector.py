"""Which of a user's items are the queries of this request: read, score, draw, log, return."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

from bandit.errors import InvalidValueError
from bandit.policy import quotas
from bandit.records import Decision
from bandit.settings.load import DEFAULT_FILE, Settings, load_settings
from feature_repo.connection import client_of
from feature_repo.keys import Keys
from serving.decider import Decider, Known, Outcome, selection_of
from serving.decision_log import append_command
from serving.features.last_seen import ProfileCache, profile_of
from serving.features.reader import FeatureReader
from serving.modes import Existing, check_mode
from serving.redis_io.async_connections import AsyncConnections
from serving.redis_io.breaker import CircuitBreaker
from serving.redis_io.connections import Connections
from serving.redis_io.unavailable import Unavailable
from serving.request import Request, check_request
from serving.selection import Selection
from serving.served_model import ServedModel

log = logging.getLogger(__name__)

# Shares of the deadline. One caller after the other finds that Redis is unavailable, so that there is time left to answer each without it.
_PATIENCE_SHARE = 0.5  # that one exchange may take
_READ_SHARE = 0.75  # that may have passed when the features are there
_LOG_SHARE = 0.9  # that may have passed when the log has answered
_TURN_SHARE = 0.95  # that may have passed when who waited for a turn is let go
_PIPELINED_USERS = 20
_PING = b"*1\r\n$4\r\nPING\r\n"

Observer: TypeAlias = Callable[[Selection, float], None]


class QuerySelector:
    """The library that a retrieval service calls. One selector per process serves all its threads."""

    def __init__(self, settings: Settings, reader: FeatureReader, model: ServedModel) -> None:
        """Put together from its parts; `QuerySelector.open` makes them from the settings file."""
        self._settings, self._reader, self._model = settings, reader, model
        self.keys = Keys.of(settings.feature_repo_path)
        self._decider, self._profiles = Decider(settings, model), ProfileCache(settings.serving.cached_profiles)
        self._deadline = settings.serving.deadline_ms / 1000.0
        patience = _PATIENCE_SHARE * self._deadline
        url, most = settings.redis_url, settings.serving.connections
        self.breaker = CircuitBreaker(failures=settings.serving.breaker_failures, pause=settings.serving.breaker_seconds)
        self._connections = Connections(url, self.breaker, most=most, patience=patience)
        self._async_connections = AsyncConnections(url, self.breaker, in_flight=most, patience=patience)
        self.observer: Observer | None = None  # called with each selection and the seconds that it took

    @classmethod
    def open(cls, path: str | Path = DEFAULT_FILE) -> Self:
        """Read the settings file and connect.

        Raises: InvalidSettingError, DependencyUnavailableError when Redis does not answer, FeatureStoreError when nothing was applied yet.
        """
        if quotas.__file__.endswith(".py"):
            log.warning("the loops of a request are not compiled: there was no C compiler at installation, and `select` takes longer")
        settings = load_settings(path)
        timeout = settings.serving.deadline_ms / 1000.0
        reader = FeatureReader(settings.feature_repo_path, settings.redis_url, timeout=timeout)
        client = client_of(settings.redis_url, timeout=timeout)
        return cls(
            settings, reader, ServedModel(client, Keys.of(settings.feature_repo_path), poll_seconds=settings.serving.model_poll_seconds)
        )

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
        self._connections.close()

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
        request = self._request(user_id, k, context, caps=caps, fallback=fallback, existing=existing, now=now, seed=seed)
        with self._connections.turn(*self._wait_until(request.started)) as turn:
            (reply,) = turn.exchange([self._reader.command(user_id)], self._read_until(request), request.prepare)
            known = self._known(request, reply)
            outcome = self._decider.one(known)
            if isinstance(outcome, Decision) and known.reachable:
                (reply,) = turn.exchange([append_command(outcome, self.keys)], self._log_until(request))
        return self._done(request, selection_of(known, outcome, reply))

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
        """`select` for asyncio: the same decision, and nothing blocks the loop."""
        request = self._request(user_id, k, context, caps=caps, fallback=fallback, existing=existing, now=now, seed=seed)
        async with self._async_connections.turn(*self._wait_until(request.started)) as turn:
            (reply,) = await turn.exchange([self._reader.command(user_id)], self._read_until(request))
            known = self._known(request, reply)
            outcome = self._decider.one(known)
            if isinstance(outcome, Decision) and known.reachable:
                (reply,) = await turn.exchange([append_command(outcome, self.keys)], self._log_until(request))
        return self._done(request, selection_of(known, outcome, reply))

    async def redis_state(self) -> str:
        """Ask Redis now: it "answers", is "unavailable", or "refuses" our password or user, which it will do until somebody mends that."""
        now = time.monotonic()
        async with self._async_connections.turn(*self._wait_until(now)) as turn:
            (reply,) = await turn.exchange([_PING], now + self._deadline)
        return "refuses" if self.breaker.locked_out else "unavailable" if isinstance(reply, Unavailable) else "answers"

    async def close_async(self) -> None:
        """`close`, from the loop that `select_async` was called on."""
        self._async_connections.close()
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

        Returns: selections in the order of the users. Twenty at a time are read, while those before them are decided and the ones before
        those logged; each of these rounds has the deadline of one call.

        Raises: InvalidValueError as `select`, or for another number of seeds than users.
        """
        if seeds is not None and len(seeds) != len(user_ids):
            raise InvalidValueError("seeds", expected=f"one for each of {len(user_ids)} users", received=len(seeds))
        check_mode(self._settings.serving.mode, None)
        for user_id in user_ids:  # all before any decision is logged
            check_request(user_id, k)
        selections: list[Selection] = []
        known: list[Known] = []
        decided: list[tuple[Known, Outcome]] = []
        for start in [*range(0, len(user_ids), _PIPELINED_USERS), None, None]:  # two rounds more: the last are decided, then logged
            numbers = range(start, min(start + _PIPELINED_USERS, len(user_ids))) if start is not None else range(0)
            asked = [Request.of(user_ids[n], k, context, now=now, seed=None if seeds is None else seeds[n]) for n in numbers]
            replies, outcomes = self._round(asked, known, decided)
            selections += [self._done(one.request, selection_of(one, outcome, next(replies))) for one, outcome in decided]
            decided = list(zip(known, outcomes, strict=True))
            known = [self._known(request, next(replies)) for request in asked]
        return selections

    def _round(
        self, asked: Sequence[Request], known: Sequence[Known], decided: Sequence[tuple[Known, Outcome]]
    ) -> tuple[Iterator[Any], list[Outcome]]:
        """One pipeline logs what was decided and reads for those who ask; meanwhile those are decided whose rows are known.

        Returns: a reply for each that was decided (None where there is nothing to log) and for each who asked; the new outcomes.
        """
        to_log = [outcome if isinstance(outcome, Decision) and before.reachable else None for before, outcome in decided]
        commands = [append_command(decision, self.keys) for decision in to_log if decision is not None]
        commands += [self._reader.command(request.user_id) for request in asked]
        outcomes: list[Outcome] = []
        now = time.monotonic()
        with self._connections.turn(*self._wait_until(now)) as turn:
            replies = turn.exchange(commands, now + _LOG_SHARE * self._deadline, lambda: outcomes.extend(self._decider.many(known)))
        answers = iter(replies)
        logged = [before.unavailable if decision is None else next(answers) for (before, _), decision in zip(decided, to_log, strict=True)]
        return chain(logged, answers), outcomes or self._decider.many(known)

    def _request(self, user_id: str, k: int, context: Mapping[str, str] | None, **options: Any) -> Request:  # noqa: ANN401 -- see Request.of
        check_mode(self._settings.serving.mode, options["existing"])
        return Request.of(user_id, k, context, **options)

    def _wait_until(self, started: float) -> tuple[float, float]:
        """When a caller stops waiting for its turn, and when it must be let go; times are those of time.monotonic."""
        return started + _READ_SHARE * self._deadline, started + _TURN_SHARE * self._deadline

    def _read_until(self, request: Request) -> float:
        return request.started + _READ_SHARE * self._deadline

    def _log_until(self, request: Request) -> float:
        return request.started + _LOG_SHARE * self._deadline

    def _known(self, request: Request, reply: Any) -> Known:  # noqa: ANN401 -- Redis' answer
        """What was read; else the row seen last, else what the caller passed, unless it is too late to choose from them."""
        row = self._reader.row(request.user_id, reply)
        if not isinstance(row, Unavailable):
            self._profiles.keep(request.user_id, row)
            return Known(request=request, row=row)
        log.debug("select degraded: %s", row.error)
        if row.too_late or time.monotonic() > request.started + self._deadline:
            return Known(request=request, row=(None, None), unavailable=row)
        last = self._profiles.of(request.user_id) or (profile_of(request.fallback), None)
        return Known(request=request, row=last, unavailable=row)

    def _done(self, request: Request, selection: Selection) -> Selection:
        if self.observer is not None:
            self.observer(selection, time.monotonic() - request.started)
        return selection
