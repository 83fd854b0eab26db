"""Item embeddings: the space in which a user's items are clustered."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bandit.errors import InvalidTableError
from bandit.types import Floats32, Ints
from training.logs.columns import Mask, Problems
from training.logs.reader import Reading, read_files
from training.logs.rejected import RejectedRows

SCHEMA = pa.schema([("item_id", pa.string()), ("embedding", pa.list_(pa.float32())), ("topic", pa.int64())])
UNKNOWN_TOPIC = -1
_ROWS_PER_STEP = 65_536
_UNIT = 1e-3  # how far from 1 a length may be that counts as 1: half-precision numbers are


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """Item ids in ascending order and their vectors of length 1, float32 (items, d), with the topic of each item when the file has it.

    `normalised`: vectors that had another length.
    """

    item_ids: pa.Array
    vectors: Floats32
    topics: Ints | None
    normalised: int


@dataclass(slots=True)
class _Vectors:
    """The rule for embeddings: finite numbers, not all zero, as many as most of the first rows have."""

    dimension: int = 0

    def __call__(self, batch: pa.RecordBatch) -> Problems:
        column = batch.column("embedding")
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
        if not self.dimension and lengths.any():
            self.dimension = int(np.bincount(lengths[lengths > 0]).argmax())
        other = lengths != self.dimension
        yield "embedding: another length than the others", other & (lengths > 0)
        yield "embedding: empty", (lengths == 0) & ~_nulls(column)
        yield from self._numbers(column, other)

    def _numbers(self, column: pa.Array, other: Mask) -> Problems:
        rows = np.flatnonzero(~other & ~_nulls(column))
        vectors = column.take(pa.array(rows)).flatten().to_numpy(zero_copy_only=False).reshape(len(rows), -1)
        for problem, bad in (("not finite", ~np.isfinite(vectors).all(axis=1)), ("all zero", ~vectors.any(axis=1))):
            mask = np.zeros(len(other), bool)
            mask[rows[bad]] = True
            yield f"embedding: {problem}", mask


def read_embeddings(path: str | Path, rejected: RejectedRows) -> Embeddings:
    """Read item_id, embedding (list of numbers) and, when there, topic (whole number, null for unknown) of a file or folder.

    Items are put in order of their ids, so that no result depends on the order of the file. An item that stands twice keeps its first row.

    Raises: InvalidTableError for a file that is none, a missing column, a type that loses something, or no usable item at all.
    """
    rule = _Vectors()
    table = read_files(path, Reading(schema=SCHEMA, optional=["topic"], nullable=["topic"], rule=rule), rejected)
    if not table.num_rows:
        problem = f"none of {rejected.rows} rows can be used: {dict(rejected.reasons)}" if rejected.rows else "no rows"
        raise InvalidTableError(str(path), f"{problem}, expected at least one item")
    ids = table["item_id"].combine_chunks()
    vectors = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(len(ids), rule.dimension)
    topics = pc.fill_null(table["topic"], UNKNOWN_TOPIC).to_numpy() if "topic" in table.column_names else None
    order = pc.sort_indices(ids).to_numpy()  # stable: of equal ids the first row comes first
    ids = ids.take(pa.array(order))
    repeats = np.append(False, np.asarray(pc.equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False), bool))
    if repeats.any():
        first = order[np.maximum.accumulate(np.where(repeats, 0, np.arange(len(order))))]
        other = (vectors[order] != vectors[first]).any(axis=1)
        if topics is not None:
            other |= topics[order] != topics[first]
        rejected.add_values(str(path), "item_id: stands twice, with other values", ids.filter(pa.array(other)).to_pylist())
    order = order[~repeats]
    vectors, normalised = _of_unit_length(vectors[order])
    return Embeddings(
        item_ids=ids.filter(pa.array(~repeats)), vectors=vectors, topics=None if topics is None else topics[order], normalised=normalised
    )


def _of_unit_length(vectors: Floats32) -> tuple[Floats32, int]:
    """The vectors with those of another length scaled to 1, and how many these are; the others keep their bytes."""
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    other = np.flatnonzero(np.abs(lengths - 1.0) > _UNIT)
    if len(other):
        vectors = vectors.copy()
    for start in range(0, len(other), _ROWS_PER_STEP):
        rows = other[start : start + _ROWS_PER_STEP]
        vectors[rows] = vectors[rows] / lengths[rows, None]
    return vectors, len(other)


def _nulls(column: pa.Array) -> npt.NDArray[np.bool_]:
    return np.asarray(pc.is_null(column).to_numpy(zero_copy_only=False), bool)
