"""Foreign logs: Vowpal Wabbit's dsjson and text, the Open Bandit format, and plain tables, valued as they are."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import numpy as np

from bandit.errors import InvalidPropensityError, InvalidTableError, InvalidValueError
from bandit.ope.diagnostics import audit_single_actions, diagnose
from bandit.ope.estimators import ESTIMATORS
from bandit.ope.estimators.batch import single_actions
from bandit.ope.gate import Gate
from bandit.ope.lift import differences
from bandit.types import Floats
from training.evaluation.foreign.logged_rows import Rows
from training.evaluation.foreign.read import ForeignLog, read_foreign
from training.evaluation.result import Evaluation, PartialSums, evaluation_of

UNIFORM, LOGGED, COLUMN = "uniform", "logged", "column"
TARGET_COLUMN = "target_probability"
_ESTIMATORS = [estimator for estimator in ESTIMATORS.values() if not estimator.needs_model]
_ROUNDING = 1e-6  # how far the rounding of float32 may carry a probability over 1, or below 0
_DEVIATIONS = 3.0  # standard errors by which a share that the log never covers must be sure


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """What is asked of a log: the target, the range of rewards, and the mean weight of its rows, by which theirs are divided."""

    policy: str
    low: float
    high: float
    mean_weight: float


def evaluate_file(
    file: Path,
    policy: str,
    where: Sequence[str],
    reward_range: str,
    gate: Gate,
    *,
    tolerate: float = 0.01,
    say: Callable[[str], None] = lambda step: None,
) -> Evaluation:
    """The verdict on a policy from a foreign log, against the policy that logged.

    Args:
        file: see `read_foreign`.
        policy: `uniform` over the actions, `logged`, or `column` for the log's own `target_probability`.
        where: rows to keep.
        reward_range: least and most reward of a row, such as "0,1".
        gate: thresholds.
        tolerate: share of the rows that may be unreadable.
        say: is told how far the reading is.

    Raises: InvalidTableError with the row of a propensity or reward that cannot be, EmptyLogError, InvalidValueError.
    """
    low, high = _range(reward_range)
    if policy not in {UNIFORM, LOGGED, COLUMN}:
        raise InvalidValueError("policy", expected=f"one of {[UNIFORM, LOGGED, COLUMN]} on a foreign log", received=policy)
    log = read_foreign(file, where, tolerate=tolerate, say=say)
    weights = sum(float(rows["weight"].sum()) for rows in log.chunks())
    question = _Question(policy=policy, low=low, high=high, mean_weight=weights / len(log))
    total = reduce(operator.add, (_value(rows, question, log) for rows in log.chunks()))
    doubts, notes = _uncovered(total, gate)
    found = evaluation_of(total, policy, LOGGED, gate, np.random.default_rng(1), [*log.notes(), *notes], doubts)
    return replace(found, log=log.summary())


def _value(rows: Rows, question: _Question, log: ForeignLog) -> PartialSums:
    """Sums over some rows. A row that stands for several decisions counts with its share of the mean."""
    probability = _checked(rows, "probability", (0.0, 1.0), log)
    reward = _checked(rows, "reward", (question.low, question.high), log)
    actions = np.where(np.isnan(rows["actions"]), log.tally.largest_action or np.nan, rows["actions"])
    target = _target(rows, question.policy, probability, actions, log)
    importance = rows["weight"] / question.mean_weight
    try:
        valued, baseline = (single_actions(probability, wanted, reward, rows["user"], importance) for wanted in (target, probability))
    except InvalidPropensityError as error:
        raise InvalidTableError(str(log.file), error.problem, column="probability", row=int(rows["row"][error.row])) from error
    closed = np.nan_to_num(rows["closed"]) if question.policy == UNIFORM else np.zeros(len(rows))
    logged_quotas = np.stack((probability, np.zeros(len(rows))), axis=1) * importance[:, None]
    target_quotas = np.stack((target, closed * target), axis=1) * importance[:, None]
    return PartialSums(
        target={estimator.name: estimator.observe(valued) for estimator in _ESTIMATORS},
        baseline={estimator.name: estimator.observe(baseline) for estimator in _ESTIMATORS},
        difference=differences(ESTIMATORS["ips"], valued, baseline),
        diagnostics=diagnose(valued, logged_quotas, target_quotas),
        audit=audit_single_actions(probability, np.where(np.isnan(actions), 1.0 / probability, actions - np.nan_to_num(rows["closed"]))),
    )


def _checked(rows: Rows, name: str, span: tuple[float, float], log: ForeignLog) -> Floats:
    """A column within its range, up to the rounding of float32.

    Raises: InvalidTableError naming the first row that is not.
    """
    low, high = span
    values = np.asarray(rows[name], np.float64)
    near = np.clip(values, low, high)
    bad = ~(np.abs(values - near) <= _ROUNDING)
    if bad.any():
        place = int(np.argmax(bad))
        problem = f"{values[place]} is outside of [{low:g}, {high:g}]"
        raise InvalidTableError(str(log.file), problem, column=TARGET_COLUMN if name == "target" else name, row=int(rows["row"][place]))
    return near


def _target(rows: Rows, policy: str, probability: Floats, actions: Floats, log: ForeignLog) -> Floats:
    if policy == LOGGED:
        return probability
    if policy == COLUMN:
        if np.isnan(rows["target"]).all():
            raise InvalidTableError(str(log.file), "missing: the target's probability of the logged action", column=TARGET_COLUMN)
        return _checked(rows, "target", (0.0, 1.0), log)
    bad = ~(actions >= 1.0)
    if bad.any():
        row, count = int(rows["row"][int(np.argmax(bad))]), actions[int(np.argmax(bad))]
        problem = "missing: how many actions there were, which 'uniform' needs" if np.isnan(count) else f"{count:g}, expected 1 or more"
        raise InvalidTableError(str(log.file), problem, column="actions", row=row)
    return 1.0 / actions


def _uncovered(total: PartialSums, gate: Gate) -> tuple[list[str], list[str]]:
    """Doubts and notes about actions that the target takes and the log never has: the mean weight falls short of 1 by their share.

    A plain log names the probability of the chosen action only, so the share is an estimate, and counts when it is sure.
    """
    found = total.diagnostics
    missing = 1.0 - found.mean_weight
    spread = max(found.squares / found.draws - found.mean_weight**2, 0.0) if found.draws else 0.0
    sure = missing - _DEVIATIONS * np.sqrt(spread / max(found.draws, 1.0))
    if not sure > 0.0 or found.decisions < gate.decisions:
        return [], []
    text = f"about {missing:.1%} of the target's probability is on actions that this log does not have (at least {sure:.1%})"
    return ([text], []) if sure > gate.unsupported_share else ([], [text])


def _range(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InvalidValueError("--reward-range", expected="two numbers, such as 0,1", received=text) from error
    if not -np.inf < low < high < np.inf:
        raise InvalidValueError("--reward-range", expected="two finite numbers, the lower first", received=text)
    return low, high
