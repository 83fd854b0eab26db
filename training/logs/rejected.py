"""Rows that no step can use: counted by reason, written below `data/rejected/`, and few, or the step stops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from bandit.errors import TooManyBadRowsError
from bandit.model.linear_model import sha256
from bandit.settings.load import Settings
from training.logs.schemas import REJECTED
from training.logs.tables import write_table

_KEPT = 10_000  # rows of one source that are written, of those that are counted
_CELL = 300  # characters of a value that are written


@dataclass(slots=True, kw_only=True)
class RejectedRows:
    """What one source held that could not be used. `source`: the file, folder or log, as the operator knows it."""

    source: str
    rows: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    kept: list[dict[str, Any]] = field(default_factory=list)

    def add(self, file: Path, start: int, batch: pa.RecordBatch, reason: str, bad: Any) -> None:  # noqa: ANN401 -- numpy's integers
        """Count these rows of a batch that begins at row `start` of the file."""
        self.reasons[reason] += len(bad)
        for row in bad[: max(_KEPT - len(self.kept), 0)].tolist():
            content = ", ".join(f"{name}={_text(batch.column(name), row)}" for name in batch.schema.names)
            self.kept.append({"file": str(file), "row": start + row, "reason": reason, "content": content})

    def add_values(self, file: str, reason: str, values: Sequence[str]) -> None:
        """Count rows of which only this value is known."""
        self.reasons.update({reason: len(values)} if values else {})
        for value in values[: max(_KEPT - len(self.kept), 0)]:
            self.kept.append({"file": file, "row": None, "reason": reason, "content": repr(value)[:_CELL]})

    def settle(self, settings: Settings, *, tolerate: bool = True) -> Mapping[str, int]:
        """Write the bad rows and return how many there are for each reason.

        The same rows again are the same file: a step may be repeated.

        Raises: TooManyBadRowsError when their share is above `intake.tolerate`, unless not `tolerate`; they are written then, too.
        """
        if self.kept:
            table = pa.Table.from_pylist(self.kept, REJECTED)
            name = sha256("\n".join(f"{row['file']} {row['row']} {row['reason']}" for row in self.kept).encode())[:16]
            write_table(table, settings.data_path / "rejected" / f"{name}.parquet")
        bad = self.reasons.total()
        if tolerate and bad > settings.intake.tolerate * self.rows:
            raise TooManyBadRowsError(self.source, bad, self.rows, settings.intake.tolerate, dict(self.reasons.most_common(3)))
        return dict(sorted(self.reasons.items()))


def _text(values: pa.Array, row: int) -> str:
    value = values[row]
    if pa.types.is_timestamp(value.type):
        value = value.cast(pa.int64())
    try:
        return repr(value.as_py())[:_CELL]
    except UnicodeDecodeError:
        return repr(value.cast(pa.binary()).as_py())[:_CELL]
