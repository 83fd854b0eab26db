"""Retrain: every step since the last run, for a scheduler. Safe to repeat, safe to interrupt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bandit.errors import EmptyLogError, NoComparisonError, NotBetterError, TooFewRowsError, UnknownModelError
from bandit.settings.load import Settings
from training.evaluation.gate import RolledBack, promote_if_better, roll_back_if_worse
from training.features.feature_store import materialize
from training.features.fold import Folded, fold
from training.logs.archive import compact, move_logs
from training.models.join import Joined, join
from training.models.promote import Promoted
from training.models.train import Trained, train


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrained:
    """What each step did; None for a step that had nothing to do, and `not_promoted` then says why."""

    decisions_moved: int
    folded: Folded | None
    rows_materialized: int
    joined: Joined | None = None
    trained: Trained | None = None
    promoted: Promoted | None = None
    rolled_back: RolledBack | None = None
    not_promoted: str = ""


def retrain(settings: Settings, *, as_of: int, now: int, say: Callable[[str], None] = lambda step: None) -> Retrained:
    """Move decisions, fold, materialize, join, train, promote, as of one time (UTC microseconds).

    Raises: DependencyUnavailableError, InvalidTableError and the like from the steps; logs that are still empty are not an error.
    """
    say("moving decisions and feedback to the logs")
    moved = move_logs(settings).decisions
    compact(settings, now=now)
    say("folding feedback")
    try:
        folded = fold(settings, as_of=as_of, now=now)
    except EmptyLogError as error:
        say("materializing")
        return Retrained(decisions_moved=moved, folded=None, rows_materialized=materialize(settings, until=as_of), not_promoted=str(error))
    say("materializing")
    materialized = materialize(settings, until=as_of)
    joined, trained, rolled_back = None, None, None
    try:
        say("joining decisions with feedback")
        joined = join(settings, as_of=as_of)
        say("looking back at the champion")
        rolled_back = roll_back_if_worse(settings)
        say("training")
        trained = train(settings, as_of=as_of)
        say("promoting")
        promoted = promote_if_better(settings, version=trained.version)
    except (EmptyLogError, TooFewRowsError, UnknownModelError, NoComparisonError, NotBetterError) as error:
        promoted, reason = None, str(error)
    else:
        reason = ""
    return Retrained(
        decisions_moved=moved,
        folded=folded,
        rows_materialized=materialized,
        joined=joined,
        trained=trained,
        promoted=promoted,
        rolled_back=rolled_back,
        not_promoted=reason,
    )
