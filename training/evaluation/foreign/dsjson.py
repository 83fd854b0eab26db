"""Decisions as Vowpal Wabbit's `--dsjson`, which Azure Personalizer logs: one JSON object a line.

Reward is minus the label's cost. `_skipLearn` and `_deferred` mark decisions that nobody saw; `pdrop` is the chance with which the logger
dropped a decision like this one, so that the row stands for 1 / (1 - pdrop) of them. A conditional contextual bandit (CCB) has several
slots a line, each with its own action, probability and cost: each slot is a row.
Source: Vowpal Wabbit 9.11, `json_parser/src/parse_example_json.cc`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from bandit.ope.estimators.batch import BUCKETS
from bandit.rewards.feedback import DECODE_ERRORS
from training.evaluation.foreign.conditions import LEFT_OUT, Conditions
from training.evaluation.foreign.logged_rows import DEFERRED, NO_LABEL, SKIP_LEARN, Rows, Tally, bucket_of, id_of, rows_of
from training.evaluation.foreign.text_lines import TextFile, one_line

CHECKPOINT = "a checkpoint line of the logger"
ORPHAN = "an observation without its decision"
CUT = "the last line is cut short"
UNREADABLE = "not a decision of dsjson"
_CHUNK = 16_384  # rows turned into arrays at once
_RAW = msgspec.Raw(b"")


class _Slot(msgspec.Struct):
    """The outcome of one slot: actions and probabilities in order, the chosen first."""

    cost: float | None = msgspec.field(name="_label_cost", default=None)
    actions: list[int] | int = msgspec.field(name="_a", default_factory=list)
    probabilities: list[float] | float = msgspec.field(name="_p", default_factory=list)


class _Interaction(msgspec.Struct):
    """What is read of a line."""

    cost: float | None = msgspec.field(name="_label_cost", default=None)
    probability: float | None = msgspec.field(name="_label_probability", default=None)
    actions: list[int] = msgspec.field(name="a", default_factory=list)
    probabilities: list[float] = msgspec.field(name="p", default_factory=list)
    event_id: str | int | None = msgspec.field(name="EventId", default=None)
    skip_learn: bool | None = msgspec.field(name="_skipLearn", default=None)
    deferred: bool | None = msgspec.field(name="_deferred", default=None)
    drop: float | None = msgspec.field(name="pdrop", default=None)
    slots: list[_Slot] | None = msgspec.field(name="_outcomes", default=None)
    observations: msgspec.Raw = msgspec.field(name="o", default=_RAW)
    continuous: msgspec.Raw = msgspec.field(name="_label_ca", default=_RAW)
    reward_value: msgspec.Raw = msgspec.field(name="RewardValue", default=_RAW)
    context: msgspec.Raw = msgspec.field(name="c", default=_RAW)


class _UnusableError(ValueError):
    """A line that is no decision: why, and the field that says so."""

    def __init__(self, problem: str, column: str | None = None) -> None:
        self.problem, self.column = problem, column


_decoder = msgspec.json.Decoder(_Interaction)
_any = msgspec.json.Decoder()


def looks_like(record: dict[str, Any]) -> bool:
    """Whether a line of JSON is of this format, and not a row of a plain table."""
    return any(key.startswith("_label") or key in {"_outcomes", "_skipLearn", "RewardValue", "Observations", "c"} for key in record)


def read(source: TextFile, conditions: Conditions, tally: Tally) -> Iterator[Rows]:
    """The rows of a log in chunks. Lines that do not begin with `{` are passed over, as Vowpal Wabbit does, and counted."""
    waiting: list[tuple[Any, ...]] = []
    for number, line in enumerate(source.lines()):
        if not line.text.strip():
            continue
        tally.rows += 1
        if line.text.startswith(b"[CHECKPOINT"):
            tally.leave(CHECKPOINT)
            continue
        try:
            waiting += _decisions(number, line.text, conditions, tally)
        except (*DECODE_ERRORS, _UnusableError) as error:
            if not line.whole and isinstance(error, DECODE_ERRORS):
                tally.leave(CUT)
                continue
            problem, column = (error.problem, error.column) if isinstance(error, _UnusableError) else (one_line(error), None)
            tally.refuse(number, problem if column or "not supported" in problem else UNREADABLE, problem, column=column)
        if len(waiting) >= _CHUNK:
            yield _arrays(waiting)
            waiting = []
    yield _arrays(waiting)


def _arrays(rows: list[tuple[Any, ...]]) -> Rows:
    columns = zip(*rows, strict=True) if rows else ((),) * 9
    names = ("row", "id", "user", "skipped", "probability", "reward", "actions", "closed", "weight")
    return rows_of(dict(zip(names, map(np.asarray, columns), strict=True)), len(rows))


def _decisions(number: int, text: bytes, conditions: Conditions, tally: Tally) -> list[tuple[Any, ...]]:
    """The rows of one line, as `_arrays` takes them."""
    if conditions.wanted:
        record = _any.decode(text)
        if not isinstance(record, dict):
            raise _UnusableError("not a JSON object")
        if not conditions.hold(record):
            tally.leave(LEFT_OUT)
            return []
    line = _decoder.decode(text)
    if line.reward_value != _RAW and line.context == _RAW:
        tally.leave(ORPHAN)
        return []
    if line.continuous != _RAW:
        raise _UnusableError("continuous actions (_label_ca) are not supported")
    if line.slots is not None or (line.cost is None and b'"_slot_id"' in bytes(line.context)):
        _refuse_slates(line)
    elif not line.actions:
        raise _UnusableError("it names no actions", "a")
    elif line.cost is not None and line.probability is None:
        raise _UnusableError("missing", "_label_probability")
    weight = _weight(line.drop)
    key = id_of(line.event_id) if line.event_id not in {None, ""} else 0
    user = bucket_of(line.event_id) if key else number % BUCKETS
    skipped = _skipped(line)
    outcomes = [_outcome(slot) for slot in line.slots] if line.slots else [_single(line)]
    if not skipped and any(outcome is None for outcome in outcomes):
        skipped = NO_LABEL
    return [(number, key, user, skipped, *(outcome or (1.0, 0.0, 1.0, 0.0)), weight) for outcome in outcomes]


def _refuse_slates(line: _Interaction) -> None:
    if b'"_slot_id"' in bytes(line.context) or (line.slots is not None and line.cost is not None):
        raise _UnusableError("slates are not supported: their slots share one reward")


def _weight(drop: float | None) -> float:
    if drop is None:
        return 1.0
    if not 0.0 <= drop < 1.0:
        raise _UnusableError(f"{drop:g}, expected within [0, 1): a decision that is always dropped cannot be logged", "pdrop")
    return 1.0 / (1.0 - drop)


def _skipped(line: _Interaction) -> int:
    if line.skip_learn:
        return SKIP_LEARN
    return DEFERRED if line.deferred and not _activated(line.observations) else 0


def _activated(observations: msgspec.Raw) -> bool:
    """Whether the application said that it showed a deferred decision, or sent a reward, which says the same."""
    events = _any.decode(observations) if observations else []
    return any(
        isinstance(event, dict) and ("v" in event or event.get("ActionTaken") is True or event.get("DeferredAction") is False)
        for event in (events if isinstance(events, list) else [])
    )


def _single(line: _Interaction) -> tuple[float, float, float, float] | None:
    if line.cost is None or line.probability is None:
        return None
    return _checked(line.probability, line.cost, line.probabilities, len(line.actions), "_label_probability")


def _outcome(slot: _Slot) -> tuple[float, float, float, float] | None:
    if slot.cost is None:
        return None
    probabilities = slot.probabilities if isinstance(slot.probabilities, list) else [slot.probabilities]
    if not probabilities:
        raise _UnusableError("missing: the probability of the chosen action", "_outcomes._p")
    count = len(slot.actions) if isinstance(slot.actions, list) else math.nan
    return _checked(probabilities[0], slot.cost, probabilities, count, "_outcomes._p")


def _checked(probability: float, cost: float, all_of: list[float], actions: float, column: str) -> tuple[float, float, float, float]:
    """Probability, reward, how many actions there were, and how many of them had no chance."""
    if not math.isfinite(cost):
        raise _UnusableError(f"{cost:g} is not finite", "_label_cost")
    if all_of and min(abs(other - probability) for other in all_of) > 1e-3:
        raise _UnusableError(f"{probability:g} is none of the line's probabilities", column)
    closed = float(all_of.count(0.0)) if len(all_of) == actions else math.nan
    return probability, -cost, actions, closed
