"""Reading a foreign log: one way for every format, that says what it took, what it left and why."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from bandit.errors import EmptyLogError, InvalidTableError
from bandit.rewards.feedback import DECODE_ERRORS
from training.evaluation.foreign import dsjson, vw_text
from training.evaluation.foreign.conditions import Conditions
from training.evaluation.foreign.logged_rows import COPY, ROW, SKIPPED, Rows, Tally, last_copies
from training.evaluation.foreign.table_files import read_delimited, read_json_lines, read_parquet
from training.evaluation.foreign.text_lines import TextFile, is_parquet, one_line, open_text

_CHUNK = 65_536  # rows handed out at once
_SAID_EVERY = 500_000  # rows between two words of progress


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignLog:
    """A log that was read: its rows lie in a temporary file, so that memory holds a few bytes of each, whatever the log weighs.

    format: in words. counted: places of the rows that count. has_ids: whether copies of a decision could be told.
    """

    file: Path
    format: str
    rows: Rows
    counted: np.ndarray
    tally: Tally
    has_ids: bool

    def __len__(self) -> int:
        """Number of rows that count."""
        return len(self.counted)

    def chunks(self) -> Iterator[Rows]:
        """The rows that count, in order."""
        for start in range(0, len(self.counted), _CHUNK):
            yield self.rows[self.counted[start : start + _CHUNK]]

    def summary(self) -> dict[str, object]:
        """How many rows there were, how many count, and how many do not, by reason."""
        return {"format": self.format, "rows": self.tally.rows, "counted": len(self), "left_out": dict(self.tally.left_out)}

    def notes(self) -> list[str]:
        """The same for a reader."""
        notes = [f"{count:,} of {self.tally.rows:,} rows were left out: {reason}" for reason, count in self.tally.left_out.items()]
        return notes if self.has_ids else [*notes, "rows have no id: duplicates would count twice"]


def read_foreign(
    file: Path, where: Sequence[str] = (), *, tolerate: float = 0.01, say: Callable[[str], None] = lambda step: None
) -> ForeignLog:
    """Read a log by what its first bytes look like: Parquet, dsjson, Vowpal Wabbit's text, JSON lines, or text with a delimiter.

    A table has columns `action`, `probability`, `reward`, and may have `user_id`, `decision_id`, `slot`, `actions` (how many there were)
    and `target_probability`; or it is Open Bandit's. Text may be compressed (gzip, bzip2, xz) and in UTF-8, UTF-16 or UTF-32.

    Args:
        file: to read.
        where: COLUMN=VALUE, rows to keep.
        tolerate: share of the rows that may be unreadable; they are left out.
        say: is told how far the reading is.

    Raises: InvalidTableError for a file that cannot be read, or with more unreadable rows; EmptyLogError; InvalidValueError for `where`.
    """
    conditions, tally = Conditions.of(where), Tally()
    if not file.exists():
        raise InvalidTableError(str(file), "no such file")
    if not file.is_file():
        raise InvalidTableError(str(file), "not a file: name one file of the log")
    if is_parquet(file):
        name, rows = "Parquet", _spooled(file, read_parquet(file, conditions, tally), tally, say)
    else:
        with open_text(file) as source:
            name, rows = _read_text(source, conditions, tally, say)
    _refuse_unreadable(file, tally, tolerate)
    if tally.rows and name in {"dsjson", "JSON lines"}:
        unseen = [column for column in conditions.columns if column not in conditions.seen]
        if unseen:
            raise InvalidTableError(str(file), "no row has this column, which --where asks for", column=unseen[0])
    log = _counted(file, name, rows, tally)
    if not len(log):
        raise EmptyLogError("foreign log", "; ".join([str(file), *log.notes()[: len(tally.left_out)]]))
    return log


def _read_text(source: TextFile, conditions: Conditions, tally: Tally, say: Callable[[str], None]) -> tuple[str, Rows]:
    first = next((line.strip() for line in source.head if line.strip() and not line.startswith(b"[CHECKPOINT")), b"")
    if first.startswith(b"["):
        raise InvalidTableError(str(source.file), "a JSON array: write one object a line")
    if first.startswith(b"{"):
        plain = _is_plain(source.head)
        name, reader = ("JSON lines", read_json_lines) if plain else ("dsjson", dsjson.read)
    elif vw_text.looks_like(source.head):
        name, reader = "Vowpal Wabbit text", vw_text.read
    else:
        name, reader = "text with a delimiter", read_delimited
    if not first:
        return name, np.zeros(0, ROW)
    return name, _spooled(source.file, reader(source, conditions, tally), tally, say)


def _is_plain(head: list[bytes]) -> bool:
    """Whether lines of JSON are rows of a plain table: the first that can be read decides."""
    for line in head:
        try:
            record = msgspec.json.decode(line)
        except DECODE_ERRORS:
            continue
        if isinstance(record, dict):
            return not dsjson.looks_like(record)
    return b'"_label' not in b"".join(head)


def _spooled(file: Path, chunks: Iterator[Rows], tally: Tally, say: Callable[[str], None]) -> Rows:
    """All rows, in a temporary file that vanishes with the array."""
    said = 0
    try:
        with tempfile.TemporaryFile(prefix="query-rewards-") as spool:
            for chunk in chunks:
                spool.write(np.ascontiguousarray(chunk).tobytes())
                if tally.rows - said >= _SAID_EVERY:
                    said = tally.rows
                    say(f"reading {file.name}: {said:,} rows")
            size = spool.tell()
            spool.flush()
            return np.memmap(spool, ROW, "r", shape=(size // ROW.itemsize,)) if size else np.zeros(0, ROW)
    except OSError as error:
        raise InvalidTableError(str(file), f"cannot be read through: {one_line(error)}") from error


def _refuse_unreadable(file: Path, tally: Tally, tolerate: float) -> None:
    if tally.first is None or tally.unreadable <= tolerate * tally.rows:
        return
    row, column, problem = tally.first
    share = f"{tally.unreadable:,} of {tally.rows:,} rows cannot be read, [intake] tolerate allows {tolerate:.2%}"
    raise InvalidTableError(str(file), f"{problem}; {share}", column=column, row=row)


def _counted(file: Path, name: str, rows: Rows, tally: Tally) -> ForeignLog:
    """Which rows count: the last copy of each decision, unless it is marked as not shown or has no label."""
    ids = np.asarray(rows["id"])
    last, skipped = last_copies(ids, np.asarray(rows["row"])), np.asarray(rows["skipped"])
    tally.leave(COPY, int((~last).sum()))
    for place, reason in enumerate(SKIPPED):
        if place:
            tally.leave(reason, int((last & (skipped == place)).sum()))
    return ForeignLog(
        file=file, format=name, rows=rows, counted=np.flatnonzero(last & (skipped == 0)), tally=tally, has_ids=bool((ids > 0).any())
    )
