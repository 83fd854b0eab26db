"""Item embeddings: the space in which a user's items are clustered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bandit.errors import InvalidTableError
from bandit.types import Floats32, Ints
from training.logs.tables import has_column, read_table

_SCHEMA = pa.schema([("item_id", pa.string()), ("embedding", pa.list_(pa.float32()))])
_TOPIC = pa.field("topic", pa.int64())


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """Item ids in ascending order and their vectors, float32 (items, d), with the topic of each item when the file has it."""

    item_ids: pa.Array
    vectors: Floats32
    topics: Ints | None


def read_embeddings(file: str | Path) -> Embeddings:
    """Read item_id, embedding (list of float) and, when there, topic (integer, 0 or more).

    Items are put in order of their ids, so that no result depends on the order of the file.

    Raises: InvalidTableError for a missing column, a null, a number that is not finite, lengths that differ, or an item that stands twice.
    """
    file = str(file)
    schema = _SCHEMA.append(_TOPIC) if has_column(file, _TOPIC.name) else _SCHEMA
    table = read_table(file, schema, now=0).combine_chunks()
    if not table.num_rows:
        raise InvalidTableError(file, "no rows, expected at least one item")
    column = table["embedding"].combine_chunks()
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    _refuse(
        file, "embedding", (lengths != lengths[0]) | (lengths == 0), lambda row: f"length {lengths[row]}, expected {lengths[0]} as in row 0"
    )
    vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(len(lengths), lengths[0])
    _refuse(file, "embedding", ~np.isfinite(vectors).all(axis=1), lambda _: "NaN or infinite, expected finite numbers")
    ids = table["item_id"].combine_chunks()
    codes = ids.dictionary_encode().indices.to_numpy()
    repeated = np.ones(len(codes), bool)
    repeated[np.unique(codes, return_index=True)[1]] = False
    _refuse(file, "item_id", repeated, lambda row: f"item {ids[row].as_py()!r} stands twice")
    topics = table["topic"].to_numpy() if _TOPIC.name in table.column_names else None
    if topics is not None:
        _refuse(file, "topic", topics < 0, lambda row: f"{topics[row]}, expected 0 or more")
    order = pc.sort_indices(ids).to_numpy()
    return Embeddings(item_ids=ids.take(pa.array(order)), vectors=vectors[order], topics=topics[order] if topics is not None else None)


def _refuse(file: str, column: str, bad: np.ndarray[tuple[int], np.dtype[np.bool_]], problem: Callable[[int], str]) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        raise InvalidTableError(file, problem(row), column=column, row=row)
