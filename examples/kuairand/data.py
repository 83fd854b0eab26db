"""KuaiRand-Pure as the records of Query Rewards. Where the data comes from, and its licence, stand in `data/README.md`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bandit.types import MICROSECONDS_PER_DAY, Floats32, Ints
from training.logs.schemas import ENGAGEMENTS, TIME

FOLDER = Path(__file__).parent / "data"
MAIN_FEED = 1  # tab 1, 78 % of the exposures: the rates of the other tabs run from below 0 to 0.48 and would drown the signal
LISTS = {"impression": "exposed_last50", "long_view": "long_viewed_last50", "like": "liked_last50"}  # action to column of the history
HISTORY_DAYS = 15  # the history's source days, 9 to 24 April 2022


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposures:
    """What users were shown after their history, in time order; every array (rows,).

    `users` and `items` are ids as in the history; the actions are booleans; `at` UTC microseconds.
    """

    users: list[str]
    items: Ints
    at: Ints
    actions: dict[str, np.ndarray[tuple[int], np.dtype[np.bool_]]]


def write_history(file: Path) -> int:
    """Write each user's history as engagements: impressions, long views and likes. Returns the number of rows.

    The source keeps the order of a user's events but not their times, so each list is spread evenly over the 15 days of the history
    that end with the user's last event.
    """
    source = pq.read_table(FOLDER / "history.parquet")
    last = source["last_time"].cast(TIME).cast(pa.int64()).to_numpy()
    parts = []
    for action, column in LISTS.items():
        lists = source[column].combine_chunks()
        lengths = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
        rows = np.repeat(np.arange(len(lists)), lengths)
        ends = np.cumsum(lengths)
        from_end = ends[rows] - 1 - np.arange(len(rows))
        at = last[rows] - from_end * (HISTORY_DAYS * MICROSECONDS_PER_DAY // np.maximum(lengths, 1))[rows]
        parts.append(
            pa.table(
                {
                    "user_id": pc.cast(source["user_id"].combine_chunks().take(pa.array(rows)), pa.string()),
                    "item_id": pc.cast(lists.flatten(), pa.string()),
                    "action": pa.array([action] * len(rows), pa.string()),
                    "occurred_at": pa.array(at, pa.int64()).cast(TIME),
                },
                schema=ENGAGEMENTS,
            )
        )
    table = pa.concat_tables(parts)
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)
    return int(table.num_rows)


def write_embeddings(file: Path) -> None:
    """Write the item embeddings, which were made from the history and the tags alone."""
    source = pq.read_table(FOLDER / "item_embeddings.parquet")
    embedding = source["embedding"].cast(pa.list_(pa.float32()))
    pq.write_table(pa.table({"item_id": pc.cast(source["video_id"], pa.string()), "embedding": embedding}), file)


def read_vectors() -> tuple[Ints, Floats32]:
    """Item numbers, ascending, and their vectors, float32 (items, 64)."""
    source = pq.read_table(FOLDER / "item_embeddings.parquet").sort_by("video_id")
    vectors = np.stack(source["embedding"].to_numpy()).astype(np.float32)
    return source["video_id"].to_numpy().astype(np.int64), vectors


def read_exposures() -> Exposures:
    """The main feed's exposures, in time order."""
    source = pq.read_table(FOLDER / "exposures.parquet", filters=[("tab", "==", MAIN_FEED)])
    source = source.sort_by([("time", "ascending"), ("user_id", "ascending"), ("video_id", "ascending")])
    return Exposures(
        users=pc.cast(source["user_id"], pa.string()).to_pylist(),
        items=source["video_id"].to_numpy().astype(np.int64),
        at=source["time"].cast(TIME).cast(pa.int64()).to_numpy(),
        actions={
            action: source[column].to_numpy().astype(bool)
            for action, column in (("long_view", "long_view"), ("like", "is_like"), ("hate", "is_hate"))
        },
    )
