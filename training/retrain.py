"""Retrain: every step since the last run, for a scheduler. Safe to repeat, safe to interrupt."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from bandit.errors import (
    DependencyUnavailableError,
    EmptyLogError,
    NoComparisonError,
    NotBetterError,
    RegistryError,
    TooFewRowsError,
    UnknownModelError,
)
from bandit.settings.load import Settings
from training.claim import running
from training.evaluation.gate import RolledBack, promote_if_better, roll_back_if_worse
from training.features.fold import Folded, fold
from training.features.materialize import materialize
from training.logs.archive import compact, move_logs
from training.models.join import Joined, join
from training.models.promote import Promoted, repair
from training.models.train import Trained, train


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrained:
    """What each step did; None for a step that had nothing to do, and `not_promoted` then says why. `repaired`: after a killed run."""

    decisions_moved: int
    folded: Folded | None
    rows_materialized: int
    joined: Joined | None = None
    trained: Trained | None = None
    promoted: Promoted | None = None
    rolled_back: RolledBack | None = None
    not_promoted: str = ""
    repaired: str = ""


def retrain(settings: Settings, *, as_of: int, now: int, say: Callable[[str], None] = lambda step: None) -> Retrained:
    """Move decisions, fold, materialize, join, train, promote, as of one time (UTC microseconds), under one lease.

    Evidence comes first: an unavailable registry does not keep new rewards from serving.

    Raises: DependencyUnavailableError, InvalidTableError, LockHeldError and the like from the steps; logs that are still empty are not an
    error.
    """
    with running(settings, "retrain") as lease:

        def begin(step: str) -> None:
            lease.check()
            say(step)

        repaired = ""
        with contextlib.suppress(DependencyUnavailableError, RegistryError):  # raised again where the models' turn comes
            begin("repairing what an interrupted run left")
            repaired = repair(settings)
        begin("moving decisions and feedback to the logs")
        moved = move_logs(settings).decisions
        begin("folding feedback")
        try:
            folded, reason = fold(settings, as_of=as_of, now=now), ""
        except EmptyLogError as error:
            folded, reason = None, str(error)
        compact(settings, now=now)  # after the fold, which then knows the parts of a joined file
        begin("materializing")
        done = Retrained(decisions_moved=moved, folded=folded, rows_materialized=materialize(settings, until=as_of).rows, repaired=repaired)
        if folded is None:
            return replace(done, not_promoted=reason)
        try:
            begin("joining decisions with feedback")
            done = replace(done, joined=join(settings, as_of=as_of))
            begin("looking back at the champion")
            done = replace(done, rolled_back=roll_back_if_worse(settings))
            begin("training")
            trained = train(settings, as_of=as_of)
            done = replace(done, trained=trained)
            begin("promoting")
            return replace(done, promoted=promote_if_better(settings, version=trained.version))
        except (EmptyLogError, TooFewRowsError, UnknownModelError, NoComparisonError, NotBetterError) as error:
            return replace(done, not_promoted=str(error))
