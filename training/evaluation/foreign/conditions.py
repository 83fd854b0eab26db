"""`--where COLUMN=VALUE`: which rows of a log to value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bandit.errors import InvalidTableError, InvalidValueError
from training.evaluation.foreign.logged_rows import short

LEFT_OUT = "--where does not hold"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """All must hold. `seen` collects the columns that a log without a header turned out to have."""

    wanted: Sequence[tuple[str, str]]
    seen: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, texts: Sequence[str]) -> Conditions:
        """Raises: InvalidValueError for a text that is not COLUMN=VALUE."""
        for text in texts:
            if not text.partition("=")[0].strip() or "=" not in text:
                raise InvalidValueError("--where", expected="COLUMN=VALUE", received=text)
        return cls(wanted=[(text.partition("=")[0].strip(), text.partition("=")[2]) for text in texts])

    @property
    def columns(self) -> list[str]:
        """The columns that are asked about."""
        return [column for column, _ in self.wanted]

    def require(self, file: Path, known: Iterable[str]) -> None:
        """Raises: InvalidTableError for a column that the log does not have."""
        names = list(known)
        for column in self.columns:
            if column not in names:
                raise InvalidTableError(str(file), f"no such column for --where; the log has {short(sorted(names))}", column=column)

    def hold(self, record: Mapping[str, object]) -> bool:
        """Whether a record that was read from JSON or from text is wanted; `a.b` is the field `b` of the object `a`."""
        result = True
        for column, value in self.wanted:
            known, content = _field(record, column)
            if known:
                self.seen.add(column)
            result = result and known and _equal(content, value)
        return result

    def mask(self, record: pa.RecordBatch, file: Path) -> npt.NDArray[np.bool_]:
        """Mask of the wanted rows of a table.

        Raises: InvalidTableError for a column of lists or records, which no VALUE can equal.
        """
        mask = np.ones(record.num_rows, np.bool_)
        for column, value in self.wanted:
            cells, number = record.column(column), _number(value)
            kind = cells.type
            try:
                if number is not None and (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
                    equal = pc.equal(cells.cast(pa.float64(), safe=False), number)
                else:
                    equal = pc.equal(cells.cast(pa.string()), value)
            except pa.ArrowException as error:
                raise InvalidTableError(str(file), f"cannot be compared with a text: its type is {kind}", column=column) from error
            mask &= np.asarray(pc.fill_null(equal, fill_value=False))
        return mask


def _field(record: Mapping[str, object], column: str) -> tuple[bool, object]:
    if column in record:
        return True, record[column]
    first, dot, after = column.partition(".")
    inner = record.get(first)
    return _field(inner, after) if dot and isinstance(inner, Mapping) else (False, None)


def _equal(content: object, value: str) -> bool:
    if isinstance(content, str):
        return content == value
    if isinstance(content, bool) or not isinstance(content, (int, float)):
        return content is not None and msgspec.json.encode(content).decode() == value
    return content == _number(value)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
