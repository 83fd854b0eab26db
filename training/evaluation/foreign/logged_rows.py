"""The rows of a foreign log as arrays, and the tally of those that do not count."""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bandit.ope.estimators.batch import BUCKETS

# A decision of a log. `row` counts from 0 over the rows of the file. `id` tells copies of one decision, 0 where the log has no id.
# `user` is the bucket of the user. `skipped` is a place in SKIPPED, 0 for a row that counts. `actions` is how many there were to choose
# from and `closed` how many of them had probability 0, NaN where the log does not say. `target` is the probability that the log names for
# another policy, NaN when it names none. `weight` says how many decisions the row stands for.
ROW = np.dtype(
    [
        ("row", "<i8"),
        ("id", "<u8"),
        ("user", "<i4"),
        ("skipped", "<i4"),
        ("probability", "<f8"),
        ("reward", "<f8"),
        ("actions", "<f8"),
        ("closed", "<f8"),
        ("target", "<f8"),
        ("weight", "<f8"),
    ]
)
Rows = npt.NDArray[np.void]

# Why a row that is well written does not count. These rows still take part in telling copies: the last copy of a decision decides.
SKIPPED = (
    "",
    "_skipLearn is true: the decision was not shown",
    "_deferred is true and the decision was never activated",
    "no label: the log does not say what the decision earned",
)
SKIP_LEARN, DEFERRED, NO_LABEL = 1, 2, 3
COPY = "a later copy of the same decision counts"


@dataclass(slots=True, kw_only=True)
class Tally:
    """How many rows a log has, which of them do not count, and the first that could not be read.

    `largest_action`: number of actions by their ids, for a log that does not say how many there were; 0 where ids do not tell.
    """

    rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    unreadable: int = 0
    largest_action: int = 0
    first: tuple[int, str | None, str] | None = None  # row, column, problem

    def leave(self, reason: str, count: int = 1) -> None:
        """Count rows that are left out for a good reason."""
        if count:
            self.left_out[reason] += count

    def refuse(self, row: int, reason: str, problem: str, *, column: str | None = None, count: int = 1) -> None:
        """Count rows that cannot be read: `reason` groups them, `problem` tells of the first, which is `row`."""
        self.left_out[reason] += count
        self.unreadable += count
        if self.first is None or row < self.first[0]:
            self.first = row, column, problem


def rows_of(columns: dict[str, npt.ArrayLike], length: int) -> Rows:
    """Rows with these columns; each stands for one decision, and what is not named is unknown."""
    rows = np.zeros(length, ROW)
    for name in ("actions", "closed", "target"):
        rows[name] = np.nan
    rows["weight"] = 1.0
    for name, values in columns.items():
        rows[name] = values
    return rows


def id_of(*parts: object) -> int:
    """A number for an id, never 0; two ids of a log share one with a chance of 1 in 2^64."""
    text = "\0".join(str(part) for part in parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") or 1


def bucket_of(user: object) -> int:
    """Bucket of a user: the same in every file and on every machine."""
    return zlib.crc32(str(user).encode("utf-8", "surrogatepass")) % BUCKETS


def last_copies(ids: npt.NDArray[np.uint64], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Mask of the rows that no later copy of the same decision follows; rows without an id are each a decision of their own."""
    keep = np.ones(len(ids), np.bool_)
    known = np.flatnonzero(ids)
    if len(known):
        _, place = np.unique(ids[known], return_inverse=True)
        last = np.zeros(int(place.max()) + 1, np.int64)
        np.maximum.at(last, place, rows[known])
        keep[known] = rows[known] == last[place]
    return keep


def short(values: Iterable[object], limit: int = 12) -> str:
    """Names for a message of one line, however many and however long they are."""
    names = [str(value) for value in values]
    shown = ", ".join(repr(name if len(name) <= 40 else name[:37] + "...") for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")
