"""Which of a user's items are the queries of this request: read, score, draw, log, return."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

from bandit.errors import DependencyUnavailableError, InvalidValueError
from bandit.policy import quotas
from bandit.settings.load import DEFAULT_FILE, Settings, load_settings
from feature_repo.connection import client_of
from serving.features.reader import FeatureReader
from serving.modes import Existing, check_mode
from serving.redis_io.address import Address
from serving.redis_io.async_wire import AsyncWire
from serving.redis_io.breaker import CircuitBreaker
from serving.redis_io.wire import Wire
from serving.request import Request, check_request
from serving.selection import Selection
from serving.served_model import ServedModel
from serving.steps import Going, Steps, onward, onward_together

log = logging.getLogger(__name__)

# Shares of the deadline. One caller after the other finds that Redis is unavailable, so that there is time left to answer each without it.
_PATIENCE_SHARE = 0.5  # that one exchange may take
_READ_SHARE = 0.75  # that may have passed when the features are there
_LOG_SHARE = 0.9  # that may have passed when the log has answered
_TURN_SHARE = 0.95  # that may have passed when who waited for a turn is let go
_AT_ONCE = 20  # users whose features one pipeline reads

Observer: TypeAlias = Callable[[Selection, float], None]


class QuerySelector:
    """The library that a retrieval service calls. One selector per process serves all its threads."""

    def __init__(self, settings: Settings, reader: FeatureReader, model: ServedModel) -> None:
        """Put together from its parts; `QuerySelector.open` makes them from the settings file."""
        self._settings, self._reader, self._model = settings, reader, model
        self._steps = Steps(settings, reader, model)
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

        Raises: InvalidSettingError, DependencyUnavailableError when Redis does not answer, FeatureStoreError when nothing was applied yet.
        """
        if quotas.__file__.endswith(".py"):
            log.warning("the loops of a request are not compiled: there was no C compiler at installation, and `select` takes longer")
        settings = load_settings(path)
        timeout = settings.serving.deadline_ms / 1000.0
        reader = FeatureReader(settings.feature_repo_path, settings.redis_url, timeout=timeout)
        client = client_of(settings.redis_url, timeout=timeout)
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
        run = self._steps.of(request)
        command, deadline = onward(run), request.started + _READ_SHARE * self._deadline
        with self._wire.turn(deadline, request.started + _TURN_SHARE * self._deadline) as turn:
            while True:
                answer: Any
                try:
                    (answer,) = turn.exchange(command, 1, deadline, request.prepare)
                except DependencyUnavailableError as error:
                    answer = error
                try:
                    command, deadline = onward(run, answer), request.started + _LOG_SHARE * self._deadline
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
        run = self._steps.of(request)
        command, deadline = onward(run), request.started + _READ_SHARE * self._deadline
        async with self._async_wire.turn(deadline, request.started + _TURN_SHARE * self._deadline) as turn:
            while True:
                answer: Any
                try:
                    (answer,) = await turn.exchange(command, 1, deadline)
                except DependencyUnavailableError as error:
                    answer = error
                try:
                    command, deadline = onward(run, answer), request.started + _LOG_SHARE * self._deadline
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

        Returns: selections in the order of the users. Twenty at a time are read, while those before them are decided and the ones before
        those logged; each of these rounds has the deadline of one call.

        Raises: InvalidValueError as `select`, or for another number of seeds than users.
        """
        if seeds is not None and len(seeds) != len(user_ids):
            raise InvalidValueError("seeds", expected=f"one for each of {len(user_ids)} users", received=len(seeds))
        check_mode(self._settings.serving.mode, None)
        for user_id in user_ids:  # all before any decision is logged
            check_request(user_id, k)
        made: dict[int, Selection] = {}
        requests: list[Request] = []
        read: Going = []
        decided: Going = []
        for start in [*range(0, len(user_ids), _AT_ONCE), None, None]:  # two rounds more: for the last to be decided, and to be logged
            part = range(start, min(start + _AT_ONCE, len(user_ids))) if start is not None else ()
            for number in part:
                requests.append(Request.of(user_ids[number], k, context, now=now, seed=None if seeds is None else seeds[number]))  # noqa: PERF401
            asked = onward_together([(number, self._steps.of(requests[number]), None) for number in part], made)
            read, decided = self._round(asked, read, decided, made)
        return [self._done(request, made[number]) for number, request in enumerate(requests)]

    def _round(self, asked: Going, read: Going, decided: Going, made: dict[int, Selection]) -> tuple[Going, Going]:
        """Read those who ask, log those who have decided, and let those decide meanwhile who have been read; the next two of these."""
        both, now = asked + decided, time.monotonic()
        deciding: list[Going] = []
        answers: list[Any]
        try:
            with self._wire.turn(now + _READ_SHARE * self._deadline, now + _TURN_SHARE * self._deadline) as turn:
                commands, meanwhile = b"".join(command for _, _, command in both), lambda: deciding.append(onward_together(read, made))
                answers = turn.exchange(commands, len(both), now + _LOG_SHARE * self._deadline, meanwhile) if both else []
        except DependencyUnavailableError as error:
            answers = [error] * len(both)
        answered = [(number, run, answer) for (number, run, _), answer in zip(both, answers, strict=True)]
        onward_together(answered[len(asked) :], made)
        return answered[: len(asked)], deciding[0] if deciding else onward_together(read, made)

    def _done(self, request: Request, selection: Selection) -> Selection:
        if self.observer is not None:
            self.observer(selection, time.monotonic() - request.started)
        return selection
