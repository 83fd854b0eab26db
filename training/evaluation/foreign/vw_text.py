"""Decisions as Vowpal Wabbit's text: `action:cost:probability | features`, one a line, or one a block of lines with a line per action.

Reward is minus the cost. In a block (`--cb_adf`) a first line may say `shared`, and the chosen action's line bears the label.
Source: https://github.com/VowpalWabbit/vowpal_wabbit/wiki/Contextual-Bandit-algorithms
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from bandit.ope.estimators.batch import BUCKETS
from training.evaluation.foreign.conditions import LEFT_OUT, Conditions
from training.evaluation.foreign.dsjson import CUT
from training.evaluation.foreign.logged_rows import NO_LABEL, SKIPPED, Rows, Tally, rows_of
from training.evaluation.foreign.text_lines import Line, TextFile

COLUMNS = ("action", "cost", "probability", "tag")
_OTHER_LABELS = {
    b"ccb": "conditional contextual bandits in text are not supported: log them as dsjson",
    b"slates": "slates are not supported: their slots share one reward",
    b"ca": "continuous actions are not supported",
}
_CHUNK = 16_384
_Decision = tuple[int, float, float, float]  # row, probability, reward, actions


def looks_like(head: list[bytes]) -> bool:
    """Whether the first line of a file is of this format: a bar, and before it nothing, a known word, or a label of numbers."""
    before, bar, _ = next((line for line in head if line.strip()), b"").partition(b"|")
    words = before.split()
    known = not words or words[0] in {b"shared", *_OTHER_LABELS} or b":" in before
    return bool(bar) and (known or (before.endswith(b" ") and all(math.isfinite(_number(word.decode("latin-1"))) for word in words)))


def read(source: TextFile, conditions: Conditions, tally: Tally) -> Iterator[Rows]:
    """The rows of a log in chunks; `row` is the number of the decision. Tags are not ids: several decisions may bear one."""
    conditions.require(source.file, COLUMNS)
    waiting: list[_Decision] = []
    for number, block in enumerate(_blocks(source)):
        tally.rows += 1
        decision = _decision(number, block, conditions, tally)
        if decision is not None:
            waiting.append(decision)
        if len(waiting) >= _CHUNK:
            yield _arrays(waiting)
            waiting = []
    yield _arrays(waiting)


def _arrays(decisions: list[_Decision]) -> Rows:
    columns = [np.asarray(column) for column in zip(*decisions, strict=True)] if decisions else [np.zeros(0)] * 4
    rows = rows_of(dict(zip(("row", "probability", "reward", "actions"), columns, strict=True)), len(decisions))
    rows["user"] = rows["row"] % BUCKETS
    return rows


def _blocks(source: TextFile) -> Iterator[list[Line]]:
    """The lines of each decision: one, or all up to an empty line where the file separates decisions by empty lines."""
    several = _several_lines(source.head)
    block: list[Line] = []
    for line in source.lines():
        if line.text.strip():
            block.append(line)
        if block and (not several or not line.text.strip()):
            yield block
            block = []
    if block:
        yield block


def _several_lines(head: list[bytes]) -> bool:
    texts = [line.strip() for line in head]
    first = next((place for place, text in enumerate(texts) if text), 0)
    last = max((place for place, text in enumerate(texts) if text), default=0)
    return texts[first].startswith(b"shared") or any(not text for text in texts[first:last])


class _UnusableError(ValueError):
    """A block of lines that is no decision: why, in words that group such blocks, and in this block's own."""

    def __init__(self, problem: str, reason: str = "not a decision of Vowpal Wabbit's text") -> None:
        self.problem, self.reason = problem, reason


def _decision(number: int, block: list[Line], conditions: Conditions, tally: Tally) -> _Decision | None:
    try:
        label, tag, actions = _label_of(block)
        action, cost, probability = _parts(label) if label else ("", 0.0, 0.0)
    except _UnusableError as error:
        if block[-1].whole:
            tally.refuse(number, error.reason, error.problem)
        else:
            tally.leave(CUT)
        return None
    if not label:
        tally.leave(SKIPPED[NO_LABEL])
        return None
    if not conditions.hold({"action": action, "cost": cost, "probability": probability, "tag": tag}):
        tally.leave(LEFT_OUT)
        return None
    if len(block) == 1:
        tally.largest_action = max(tally.largest_action, int(action) if action.isdecimal() else 0)
    return number, probability, -cost, float(actions) if actions > 1 else math.nan


def _label_of(block: list[Line]) -> tuple[str, str, int]:
    """The label with a cost, empty when there is none; the tag; how many actions the lines name."""
    labels: list[bytes] = []
    actions, tag = 0, b""
    for line in block:
        before, bar, _ = line.text.partition(b"|")
        words = before.split()
        if not bar:
            raise _UnusableError("a line without '|', which begins the features")
        if words and words[0] in _OTHER_LABELS:
            raise _UnusableError(_OTHER_LABELS[words[0]], _OTHER_LABELS[words[0]])
        if words and words[0] == b"shared":
            continue
        touching = words and not before.endswith((b" ", b"\t")) and b":" not in words[-1]
        if words and (touching or words[-1].startswith(b"'")):
            tag = words.pop().lstrip(b"'")
        if len(block) > 1 and any(b":" not in word for word in words):
            raise _UnusableError("a label that is not action:cost:probability")
        actions += 1 if len(block) > 1 else len(words)
        labels += [word for word in words if b":" in word]
    if len(labels) > 1:
        raise _UnusableError("several actions with a cost, expected one")
    return b"".join(labels).decode("utf-8", "replace"), tag.decode("utf-8", "replace"), actions


def _parts(label: str) -> tuple[str, float, float]:
    parts = label.split(":")
    cost, probability = (_number(part) for part in parts[1:]) if len(parts) == 3 else (math.nan, math.nan)
    if not math.isfinite(cost) or not math.isfinite(probability):
        raise _UnusableError(f"the label {label[:60]!r} is not action:cost:probability")
    return parts[0], cost, probability


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
