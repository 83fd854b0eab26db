"""The gate in a deployment: whether a candidate may serve, and whether the one that serves should."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from bandit.errors import (
    CorruptModelError,
    EmptyLogError,
    NoComparisonError,
    NoEarlierChampionError,
    NoModelError,
    NotBetterError,
    UnknownModelError,
)
from bandit.ope.gate import BETTER, NOT_BETTER
from bandit.settings.load import Settings
from training.claim import running
from training.evaluation.evaluate import LOGGED, DecisionFilter, Target, evaluate_log, target_of
from training.evaluation.result import Evaluation
from training.models.outcomes import outcomes_file
from training.models.promote import Promoted, promote, repair, rollback
from training.models.registry import ModelRegistry

_SEED = 1  # of the bootstrap: the same log gives the same intervals
_ESTIMATORS = ("ips", "snips", "dr")


@dataclass(frozen=True, slots=True, kw_only=True)
class RolledBack:
    """A model that earned less than its predecessor, and what serves now."""

    left: str
    version: str
    reasons: list[str]


def evaluate(settings: Settings, *, policy: str = "", version: str = "", against: str = "") -> Evaluation:
    """Value a policy or a model version on the deployment's own log.

    Args:
        settings: of the deployment.
        policy: name of a policy without a model; with neither, the newest version is valued.
        version: of a model.
        against: the baseline: a policy, a version, or empty for the champion, and for what was logged when there is none.

    Raises: EmptyLogError, InvalidTableError, NoModelError, UnknownModelError.
    """
    registry = ModelRegistry(settings)
    if not policy and not version:
        version = registry.newest() or ""
        if not version:
            raise NoModelError
    target = target_of(policy, version, registry.load)
    baseline = _baseline(registry, against)
    return _evaluated(settings, target, baseline)


def _baseline(registry: ModelRegistry, against: str) -> Target:
    champion = registry.champion()
    if not against and champion is None:
        return Target(label=LOGGED, policy=LOGGED)
    chosen = against or champion or ""
    return target_of("", chosen, registry.load) if chosen.isdigit() else target_of(chosen, "", registry.load)


def _evaluated(settings: Settings, target: Target, baseline: Target, *, only_model: str = "") -> Evaluation:
    """On decisions that taught neither: a model that learned noise looks better on that noise, and on nothing else."""
    taught = max((one.model.manifest.trained_until for one in (target, baseline) if one.model is not None), default=0)
    return evaluate_log(
        outcomes_file(settings),
        target,
        baseline,
        settings.gate.gate(),
        settings.reward.scheme(),
        rng=np.random.default_rng(_SEED),
        estimators=_ESTIMATORS,
        only=DecisionFilter(model=only_model, after=taught),
        processes=os.cpu_count() or 1,
    )


def promote_if_better(settings: Settings, *, version: str | None = None, force: bool = False) -> Promoted:
    """Let a version serve, the newest if None, when the gate finds it better than the champion.

    The first model of a deployment has no champion to beat; it is compared with what was logged, and kept back only when it is certainly
    not better: a log too thin to tell would otherwise never get a model. The champion itself is handed over again without a question.

    Raises: NotBetterError with the verdict's reasons, NoComparisonError without a log; whatever `promote` raises.
    """
    with running(settings, "promote"):
        repair(settings)
        registry = ModelRegistry(settings)
        chosen, champion = version or registry.newest(), _usable(registry, registry.champion())
        if not force and settings.gate.mode == "enforce" and chosen is not None and chosen != champion:
            _ask(settings, chosen, champion)
        return promote(settings, version=chosen)


def _usable(registry: ModelRegistry, champion: str | None) -> str | None:
    """The champion, None when serving could not load it either: after the features changed, the next model is a first one."""
    try:
        if champion is not None:
            registry.load(champion)
    except CorruptModelError:
        return None
    return champion


def _ask(settings: Settings, chosen: str, champion: str | None) -> None:
    try:
        found = evaluate(settings, version=chosen, against=champion or LOGGED)
    except EmptyLogError as error:
        if champion is None:
            return
        raise NoComparisonError(chosen, champion, str(error)) from error
    if found.verdict != BETTER and (champion is not None or found.verdict == NOT_BETTER):
        raise NotBetterError(f"version {chosen}", found.baseline, found.verdict, found.reasons)


def roll_back_if_worse(settings: Settings) -> RolledBack | None:
    """Let the champion's predecessor serve again when it is better on the champion's own decisions; None when nothing was done.

    The sequence that decides holds at every look, so that a scheduler may ask as often as it likes.
    """
    if settings.gate.mode == "off":
        return None
    registry = ModelRegistry(settings)
    champion = registry.champion()
    try:
        before = registry.before_champion()
        target, baseline = (target_of("", one, registry.load) for one in (before, champion or ""))
        found = _evaluated(settings, target, baseline, only_model=champion or "")
    except (NoEarlierChampionError, UnknownModelError, EmptyLogError, CorruptModelError):
        return None  # no predecessor, no log, or one that cannot be read: nothing to go back to
    if found.verdict != BETTER:
        return None
    return RolledBack(left=champion or "", version=rollback(settings).version, reasons=found.reasons)
