"""Keep learning: small updates of the served model between two retrainings, from the decisions whose window has closed since.

A small update is learned from all but the newest rows and judged on those, which neither model has seen. It is published when it predicts
them better than the serving model, and differs from it little: whatever is larger waits for `retrain`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from bandit.errors import EmptyLogError, LockHeldError, TooFewRowsError
from bandit.model.learning import Examples
from bandit.model.linear_model import LinearModel
from bandit.settings.load import Settings
from bandit.types import Floats
from training.claim import running
from training.logs.archive import move_logs
from training.models.join import join
from training.models.promote import promote, repair
from training.models.registry import ModelRegistry
from training.models.train import candidate, metrics_of, read_examples, split


@dataclass(frozen=True, slots=True, kw_only=True)
class Updated:
    """A small update: the version that serves now, or why nothing was published; mean squared errors on the `rows` held out."""

    version: str | None
    reason: str
    rows: int = 0
    error_before: float = 0.0
    error_after: float = 0.0
    change: float = 0.0


def update(settings: Settings, *, as_of: int) -> Updated:
    """Learn from what has matured by `as_of`, and publish if the rules allow. Safe to repeat, safe to interrupt.

    Raises: DependencyUnavailableError, InvalidTableError, LearnerError, CorruptModelError, LockHeldError.
    """
    with running(settings, "learn"):
        repair(settings)
        registry = ModelRegistry(settings)
        serving = registry.champion()
        if serving is None:
            return Updated(version=None, reason="no model serves yet: the first comes from `query-rewards retrain`")
        move_logs(settings)
        try:
            join(settings, as_of=as_of)
            learned, held_out = split(settings, read_examples(settings))
        except (EmptyLogError, TooFewRowsError) as error:
            return Updated(version=None, reason=str(error))
        champion = registry.load(serving)
        if champion.manifest.trained_until >= int(held_out.decided_at[0]):
            return Updated(version=None, reason="the serving model has seen the newest rows: nothing to judge an update on")
        model = candidate(settings, learned, as_of=as_of)
        verdict = _judged(champion, model, held_out, settings.training.largest_update)
        if verdict.reason:
            return verdict
        version = registry.add(model, metrics_of(model, learned))
        promote(settings, version=version)
        return replace(verdict, version=version)


def keep_learning(settings: Settings, *, clock: Callable[[], int], wait: Callable[[float], bool], show: Callable[[Updated], None]) -> None:
    """Update every `training.every_seconds`, until `wait` (seconds) says that it is enough. While a retrain runs, its turn comes first.

    Raises: as `update`.
    """
    while not wait(settings.training.every_seconds):
        try:
            show(update(settings, as_of=clock()))
        except LockHeldError as error:
            show(Updated(version=None, reason=str(error)))


def _judged(champion: LinearModel, model: LinearModel, held_out: Examples, largest: float) -> Updated:
    before, after = (_served(one, held_out) for one in (champion, model))
    error_before, error_after = (float(((held_out.residual - predicted) ** 2).mean()) for predicted in (before, after))
    change = float(np.abs(after - before).mean())
    reason = ""
    if error_after >= error_before:
        reason = f"it predicts the newest rows no better than the serving model: {error_after:.6f} against {error_before:.6f}"
    elif change > largest:
        reason = f"it differs from the serving model by {change:.4f} a row, training.largest_update is {largest}: retrain decides"
    rows = len(held_out)
    return Updated(version=None, reason=reason, rows=rows, error_before=error_before, error_after=error_after, change=change)


def _served(model: LinearModel, examples: Examples) -> Floats:
    """What the model adds to the shrunk rate, within the limit that serving holds it to."""
    limit = model.manifest.exploration.residual_limit
    return np.clip(model.predict(examples.features), -limit, limit)
