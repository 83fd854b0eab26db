"""From what was read to what is to be logged."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from redis.exceptions import ResponseError

from bandit.errors import InvalidValueError
from bandit.policy.decide import Case, decide, decide_many
from bandit.records import Decision
from bandit.settings.load import Settings
from serving.features.last_seen import Row
from serving.modes import served_as_passed, unlogged
from serving.redis_io.unavailable import Unavailable
from serving.request import Request
from serving.selection import Selection
from serving.served_model import ServedModel

log = logging.getLogger(__name__)

Outcome: TypeAlias = Decision | Selection  # a decision is to be logged; a selection says why there is none


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A request and the user's row; `unavailable` says why the row is not from the online store."""

    request: Request
    row: Row
    unavailable: Unavailable | None = None

    @property
    def reason(self) -> str:
        """Why the selection is degraded; empty when it is not."""
        return str(self.unavailable.error) if self.unavailable else ""

    @property
    def reachable(self) -> bool:
        """Whether the decision can be logged: a log that does not answer either would take another deadline to say so."""
        return self.unavailable is None or self.unavailable.reachable


class Decider:
    """Decides under the settings, with the model that serves."""

    def __init__(self, settings: Settings, model: ServedModel) -> None:
        """Decide with whatever `model` has at the time."""
        self._mode, self._rules, self._model = settings.serving.mode, settings.rules(), model

    def one(self, known: Known) -> Outcome:
        """The outcome of one request."""
        case = self._case(known)
        if isinstance(case, Selection):
            return case
        try:
            return self._concluded(known, decide(case, self._model.current, self._rules))
        except InvalidValueError as error:
            return self._concluded(known, error)

    def many(self, known: Sequence[Known]) -> list[Outcome]:
        """The same for each, one stage of all after the other."""
        cases = [self._case(each) for each in known]
        decided = iter(decide_many([case for case in cases if isinstance(case, Case)], self._model.current, self._rules))
        return [self._concluded(each, next(decided)) if isinstance(case, Case) else case for each, case in zip(known, cases, strict=True)]

    def _case(self, known: Known) -> Case | Selection:
        """What can be decided, or the selection of a request for which nothing can."""
        (profile, rewards), existing, degraded = known.row, known.request.existing, bool(known.unavailable)
        if existing is not None and not existing.covered_by(profile.cluster_ids if profile else ()):
            return unlogged(existing, known.reason or "unknown user or clusters: served as passed, not logged", degraded=degraded)
        if profile is None or not len(profile):
            return self._nothing(known.reason or ("unknown user" if profile is None else "the user has no clusters"), degraded=degraded)
        return Case(request=known.request, profile=profile, rewards=rewards, degraded=degraded)

    def _concluded(self, known: Known, decided: Decision | InvalidValueError | None) -> Outcome:
        existing, degraded = known.request.existing, bool(known.unavailable)
        if isinstance(decided, InvalidValueError):
            log.error("decision refused: %s", decided)
            return self._nothing(f"decision refused: {decided}", degraded=True)
        if decided is None:
            return self._nothing(known.reason or "no cluster may be queried", degraded=degraded)
        if existing is None:
            return decided
        if not existing.covered_by(decided.cluster_ids):
            return unlogged(existing, "caps leave out clusters of the choice: served as passed, not logged", degraded=degraded)
        return served_as_passed(decided, existing, self._mode)

    def _nothing(self, reason: str, *, degraded: bool) -> Selection:
        return Selection(
            decision_id="",
            queries=(),
            policy=self._rules.policy,
            model_version=self._model.current[0] if self._model.current else "",
            degraded=degraded,
            logged=False,
            reason=reason,
        )


def selection_of(known: Known, outcome: Outcome, reply: Any) -> Selection:  # noqa: ANN401 -- Redis' answer
    """What the caller gets, once the log has replied (or could not be asked: Unavailable)."""
    if isinstance(outcome, Selection):
        return outcome
    refused = isinstance(reply, Unavailable | ResponseError)
    if refused:
        log.debug("decision not logged: %s", reply)
    reason = known.reason or (str(reply.error if isinstance(reply, Unavailable) else reply) if refused else "")
    return Selection.of(outcome, wanted=known.request.k, reason=reason, logged=not refused)
