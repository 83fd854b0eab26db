"""Columns of a plain table, or of Open Bandit's, as rows of a log: what is a number, what is not, and where."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bandit.errors import InvalidTableError
from bandit.ope.estimators.batch import BUCKETS
from bandit.types import Floats, Ints
from training.evaluation.foreign.logged_rows import Rows, Tally, bucket_of, id_of, rows_of, short

_PLAIN, _OPEN_BANDIT = ("action", "probability", "reward"), ("item_id", "propensity_score", "click")
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_MISSING = ["", "nan", "null", "none", "na", "n/a"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Which columns of a table say what: `numbers` by field of a row, and others that are read as text."""

    name: str
    numbers: dict[str, str]
    others: tuple[str, ...]
    decimal: str = "."

    @property
    def columns(self) -> list[str]:
        """All that is read."""
        return [*self.numbers.values(), *self.others]


def layout_of(file: Path, columns: Sequence[str], decimal: str = ".") -> Layout:
    """How to read a table with these columns.

    Raises: InvalidTableError for a column that is missing, or that is there twice.
    """
    present = set(columns)
    if set(_OPEN_BANDIT) <= present and not set(_PLAIN) <= present:
        numbers = {"probability": "propensity_score", "reward": "click", "actions": "item_id"}
        layout = Layout(name="Open Bandit", numbers=numbers, others=(), decimal=decimal)
    else:
        for column in _PLAIN:
            if column not in present:
                raise InvalidTableError(str(file), f"missing; the file has {short(columns)}", column=column)
        numbers = {"probability": "probability", "reward": "reward", "actions": "actions", "target": "target_probability"}
        numbers = {field: column for field, column in numbers.items() if column in present}
        others = tuple(column for column in ("user_id", "decision_id", "slot") if column in present)
        layout = Layout(name="plain table", numbers=numbers, others=others, decimal=decimal)
    refuse_twice(file, columns, layout.columns)
    return layout


def refuse_twice(file: Path, columns: Sequence[str], used: Sequence[str]) -> None:
    """Raises: InvalidTableError when a column that is read stands in the table twice."""
    for column in used:
        if columns.count(column) > 1:
            raise InvalidTableError(str(file), f"{columns.count(column)} columns have this name: rename all but one", column=column)


def rows_of_columns(rows: Ints, column: Callable[[str], pa.Array], layout: Layout, tally: Tally) -> Rows:
    """The rows of a batch.

    Args:
        rows: number of each row in the file.
        column: cells by name.
        layout: of the table.
        tally: is told of rows that cannot be read.
    """
    readable = np.ones(len(rows), np.bool_)
    fields: dict[str, npt.ArrayLike] = {"row": rows}
    for name, source in layout.numbers.items():
        cells = column(source)
        values, good = numbers(cells, layout.decimal)
        fields[name] = values
        if not good.all():
            _refuse(rows, cells, readable & ~good, source, tally)
            readable &= good
    if layout.name == "Open Bandit":
        tally.largest_action = max(tally.largest_action, 1 + int(np.max(np.asarray(fields.pop("actions"))[readable], initial=-1.0)))
    fields |= _names(rows, {name: _texts(column(name)) for name in layout.others})
    return rows_of(fields, len(rows))[readable]


def numbers(cells: pa.Array, decimal: str = ".") -> tuple[Floats, npt.NDArray[np.bool_]]:
    """The cells as float64, and which of them are numbers (or true and false, 1 and 0); a NaN that is stored as such is one."""
    kind = cells.type
    if pa.types.is_dictionary(kind):
        cells, kind = cells.dictionary_decode(), kind.value_type
    if pa.types.is_boolean(kind):
        cells = cells.cast(pa.uint8())
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        cells = _parsed(cells, decimal)
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        return np.zeros(len(cells)), np.zeros(len(cells), np.bool_)
    values = cells.cast(pa.float64(), safe=False)
    return np.asarray(pc.fill_null(values, 0.0).to_numpy(zero_copy_only=False)), np.asarray(
        values.is_valid().to_numpy(zero_copy_only=False)
    )


def _parsed(cells: pa.Array, decimal: str) -> pa.Array:
    text = pc.utf8_trim_whitespace(cells.cast(pa.string()))
    if decimal != ".":
        text = pc.replace_substring(pc.if_else(pc.match_substring(text, "."), "", text), decimal, ".")
    lower = pc.utf8_lower(text)
    text = pc.if_else(pc.equal(lower, "true"), "1", pc.if_else(pc.equal(lower, "false"), "0", text))
    text = pc.utf8_ltrim(pc.if_else(pc.match_substring_regex(text, _NUMBER), text, pa.scalar(None, pa.string())), "+")
    return text.cast(pa.float64())


def _refuse(rows: Ints, cells: pa.Array, bad: npt.NDArray[np.bool_], column: str, tally: Tally) -> None:
    """Tell the tally of cells that are no numbers: those that are missing, and those that hold something else."""
    if not bad.any():
        return
    kind = cells.type
    missing = ~np.asarray(cells.is_valid().to_numpy(zero_copy_only=False))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        blank = pc.is_in(pc.utf8_lower(pc.utf8_trim_whitespace(cells)), pa.array(_MISSING, kind))
        missing |= np.asarray(blank.to_numpy(zero_copy_only=False))
    for which, reason in ((bad & missing, "is missing"), (bad & ~missing, "is not a number")):
        if which.any():
            place = int(np.argmax(which))
            problem = "missing" if reason == "is missing" else _explained(str(cells[place].as_py()))
            tally.refuse(int(rows[place]), f"{column} {reason}", problem, column=column, count=int(which.sum()))


def _explained(cell: str) -> str:
    shown = f"{short([cell])} is not a number"
    bare = cell.strip()
    if bare.endswith("%"):
        return f"{shown}: write a share, 0.7 for 70%"
    if bare.lower() in {"yes", "no", "y", "n"}:
        return f"{shown}: write 1 and 0"
    return f"{shown}: write a decimal point" if bare.replace(",", "", 1).lstrip("+-").isdecimal() and "," in bare else shown


def _texts(cells: pa.Array) -> list[str | None]:
    """The cells as text, None where nothing stands; numbers and lists as Python writes them."""
    return [None if cell is None or cell == "" else str(cell) for cell in cells.to_pylist()]


def _names(rows: Ints, texts: dict[str, list[str | None]]) -> dict[str, npt.ArrayLike]:
    """Buckets of the users and numbers for the ids; a row without a user is a user of its own, slots of one decision are not copies."""
    users, decisions, slots = (texts.get(name) or [None] * len(rows) for name in ("user_id", "decision_id", "slot"))
    ids = [0 if decision is None else id_of(decision, slot) for decision, slot in zip(decisions, slots, strict=True)]
    who = users if "user_id" in texts else decisions if "slot" in texts else [None] * len(rows)
    buckets = [int(row % BUCKETS) if user is None else bucket_of(user) for row, user in zip(rows, who, strict=True)]
    return {"user": np.array(buckets, np.int32), "id": np.array(ids, np.uint64)}
