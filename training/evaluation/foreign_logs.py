"""Foreign logs: VW dsjson, the Open Bandit format, and plain tables, valued as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq

from bandit.errors import EmptyLogError, InvalidPropensityError, InvalidTableError, InvalidValueError
from bandit.ope.diagnostics import audit_single_actions, diagnose
from bandit.ope.estimators import ESTIMATORS
from bandit.ope.estimators.batch import BUCKETS, single_actions
from bandit.ope.gate import Gate
from bandit.ope.lift import differences
from bandit.types import Floats, Ints
from training.evaluation.result import Evaluation, PartialSums, evaluation_of

UNIFORM, LOGGED, COLUMN = "uniform", "logged", "column"
TARGET_COLUMN = "target_probability"
_ESTIMATORS = [estimator for estimator in ESTIMATORS.values() if not estimator.needs_model]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainLog:
    """One action a row; every array (rows,).

    actions: how many there were to choose from, 0 where the log does not say. target: probabilities that the log names for another
    policy, None when it does not. users: bucket of each row's user. ids: to tell duplicates, None when rows have none.
    """

    probability: Floats
    reward: Floats
    actions: Floats
    users: Ints
    target: Floats | None = None
    ids: pa.Array | None = None


class _Interaction(msgspec.Struct):
    """What is read of a line of dsjson."""

    cost: float = msgspec.field(name="_label_cost")
    probability: float = msgspec.field(name="_label_probability")
    actions: list[int] = msgspec.field(name="a")
    event_id: str = msgspec.field(name="EventId", default="")


def read_dsjson(file: Path) -> PlainLog:
    """Decisions as VW's and Azure Personalizer's `--dsjson`: reward is minus the label's cost. Lines without a label are passed over.

    Raises: InvalidTableError naming the line.
    """
    decoder, rows = msgspec.json.Decoder(_Interaction), []
    with file.open("rb") as lines:
        for number, line in enumerate(lines):
            if b"_label_cost" not in line:
                continue
            try:
                rows.append(decoder.decode(line))
            except msgspec.MsgspecError as error:
                raise InvalidTableError(str(file), f"not a dsjson interaction: {error}", row=number) from error
    return PlainLog(
        probability=np.array([row.probability for row in rows]),
        reward=np.array([-row.cost for row in rows]),
        actions=np.array([float(len(row.actions)) for row in rows]),
        users=np.arange(len(rows)) % BUCKETS,
        ids=pa.array([row.event_id for row in rows], pa.string()) if all(row.event_id for row in rows) else None,
    )


def read_foreign(file: Path, where: Sequence[str] = ()) -> PlainLog:
    """Read a log by what it looks like: .json and .dsjson lines, else a table; a table with `propensity_score` and `click` is Open Bandit.

    A plain table has columns `action`, `probability`, `reward`, and may have `user_id`, `decision_id`, `actions` (how many there were)
    and `target_probability`.

    Args:
        file: to read.
        where: COLUMN=VALUE, rows of a table to keep.

    Raises: InvalidTableError, EmptyLogError.
    """
    if not file.exists():
        raise InvalidTableError(str(file), "no such file")
    if file.suffix in {".json", ".dsjson", ".jsonl"}:
        log = read_dsjson(file)
    else:
        table = _filtered(_table(file), where, file)
        log = _open_bandit(table) if {"propensity_score", "click", "item_id"} <= set(table.column_names) else _plain(table, file)
    if not len(log.probability):
        raise EmptyLogError("foreign log", str(file))
    return log


def _table(file: Path) -> pa.Table:
    try:
        return pc_csv.read_csv(file) if file.suffix == ".csv" else pq.read_table(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise InvalidTableError(str(file), f"not a readable table: {error}") from error


def _filtered(table: pa.Table, where: Sequence[str], file: Path) -> pa.Table:
    for condition in where:
        column, equals, value = condition.partition("=")
        if not equals:
            raise InvalidValueError("--where", expected="COLUMN=VALUE", received=condition)
        if column not in table.column_names:
            raise InvalidTableError(str(file), f"no such column; the file has {table.column_names}", column=column)
        table = table.filter(pc.equal(pc.cast(table[column], pa.string()), value))
    return table


def _open_bandit(table: pa.Table) -> PlainLog:
    """Open Bandit's columns; how many items there were is one more than the largest item id. Source: Saito et al. 2021."""
    items = 1 + (pc.max(table["item_id"]).as_py() or 0) if table.num_rows else 0
    return PlainLog(
        probability=_numbers(table["propensity_score"]),
        reward=_numbers(table["click"]),
        actions=np.full(table.num_rows, float(items)),
        users=np.arange(table.num_rows) % BUCKETS,
    )


def _plain(table: pa.Table, file: Path) -> PlainLog:
    for column in ("action", "probability", "reward"):
        if column not in table.column_names:
            raise InvalidTableError(str(file), f"missing; the file has {table.column_names}", column=column)
    rows = table.num_rows
    users = np.arange(rows)
    if "user_id" in table.column_names:
        users = table["user_id"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    return PlainLog(
        probability=_numbers(table["probability"]),
        reward=_numbers(table["reward"]),
        actions=_numbers(table["actions"]) if "actions" in table.column_names else np.zeros(rows),
        users=users % BUCKETS,
        target=_numbers(table[TARGET_COLUMN]) if TARGET_COLUMN in table.column_names else None,
        ids=table["decision_id"].combine_chunks().cast(pa.string()) if "decision_id" in table.column_names else None,
    )


def _numbers(column: pa.ChunkedArray) -> Floats:
    return np.asarray(pc.fill_null(column.cast(pa.float64()), float("nan")).to_numpy())


def evaluate_file(file: Path, policy: str, where: Sequence[str], reward_range: str, gate: Gate) -> Evaluation:
    """The verdict on a policy from a foreign log, against the policy that logged.

    Args:
        file: see `read_foreign`.
        policy: `uniform` over the actions, `logged`, or `column` for the log's own `target_probability`.
        where: rows of a table to keep.
        reward_range: least and most reward of a row, such as "0,1".
        gate: thresholds.

    Raises: InvalidTableError with the row of a propensity or reward that cannot be, EmptyLogError, InvalidValueError.
    """
    log, notes = _without_duplicates(read_foreign(file, where))
    low, high = _range(reward_range)
    bad = ~((log.reward >= low) & (log.reward <= high))
    if bad.any():
        row = int(np.argmax(bad))
        raise InvalidTableError(str(file), f"{log.reward[row]} is outside of [{low:g}, {high:g}]", column="reward", row=row)
    target = _target(log, policy, file)
    try:
        valued = single_actions(log.probability, target, log.reward, log.users)
        baseline = single_actions(log.probability, log.probability, log.reward, log.users)
    except InvalidPropensityError as error:
        raise InvalidTableError(str(file), error.problem, column="probability", row=error.row) from error
    total = PartialSums(
        target={estimator.name: estimator.observe(valued) for estimator in _ESTIMATORS},
        baseline={estimator.name: estimator.observe(baseline) for estimator in _ESTIMATORS},
        difference=differences(ESTIMATORS["ips"], valued, baseline),
        diagnostics=diagnose(valued, log.probability[:, None], target[:, None]),
        audit=audit_single_actions(log.probability, log.actions if log.actions.all() else 1.0 / log.probability),
    )
    return evaluation_of(total, policy, LOGGED, gate, np.random.default_rng(1), notes)


def _target(log: PlainLog, policy: str, file: Path) -> Floats:
    if policy == LOGGED:
        return log.probability
    if policy == COLUMN and log.target is not None:
        return log.target
    if policy == UNIFORM and log.actions.all():
        return 1.0 / log.actions
    if policy == UNIFORM:
        raise InvalidTableError(str(file), "missing: how many actions there were, which 'uniform' needs", column="actions")
    if policy == COLUMN:
        raise InvalidTableError(str(file), "missing: the target's probability of the logged action", column=TARGET_COLUMN)
    raise InvalidValueError("policy", expected=f"one of {[UNIFORM, LOGGED, COLUMN]} on a foreign log", received=policy)


def _without_duplicates(log: PlainLog) -> tuple[PlainLog, list[str]]:
    """A decision counts once, the first time."""
    if log.ids is None:
        return log, ["rows have no id: duplicates would count twice"]
    first = np.unique(np.asarray(log.ids.dictionary_encode().indices), return_index=True)[1]
    twice = len(log.ids) - len(first)
    if not twice:
        return log, []
    rows = np.sort(first)
    once = PlainLog(
        probability=log.probability[rows],
        reward=log.reward[rows],
        actions=log.actions[rows],
        users=log.users[rows],
        target=None if log.target is None else log.target[rows],
    )
    return once, [f"{twice:,} duplicates were left out"]


def _range(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InvalidValueError("--reward-range", expected="two numbers, such as 0,1", received=text) from error
    if not low < high:
        raise InvalidValueError("--reward-range", expected="the lower number first", received=text)
    return low, high
