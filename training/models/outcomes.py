"""Outcomes: what each decision's drawn clusters earned, beside what it was decided from, in a file that evaluation streams.

Training reads another file, the join's: one row per drawn cluster, so a fraction of the features here, and decisions without inputs too.
"""

from __future__ import annotations

from pathlib import Path

import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bandit.model.featurize import FEATURE_NAMES, FEATURE_VERSION
from bandit.policy.logged_inputs import INPUTS
from bandit.settings.load import Settings
from bandit.types import Floats
from training.logs.writing import whole_file

OUTCOMES_FILE = "outcomes.parquet"
ROWS_AT_ONCE = 32_768  # of a row group, which a process holds whole
_FLOATS, _INTS = pa.list_(pa.float64()), pa.list_(pa.int32())
TOTALS = "totals"  # of the inputs over all clusters of the user, (8,)
RATES = "rates"  # shrunk rate of each candidate as it was served: what the model of the reward is made of
OUTCOMES = pa.schema(
    [
        ("decision_id", pa.string()),
        ("user_id", pa.string()),
        ("decided_at", pa.int64()),  # UTC microseconds
        ("policy", pa.string()),
        ("model_version", pa.string()),
        ("arm", pa.string()),
        ("k", pa.int32()),
        ("quotas", _FLOATS),
        ("caps", _FLOATS),
        ("drawn", _INTS),  # places of the drawn clusters among the candidates, and of each:
        ("draws", _INTS),
        ("shown", _INTS),  # impressions
        ("rewards", _FLOATS),
        (RATES, pa.list_(pa.float32())),
        ("features", pa.list_(pa.float32())),
        *((name, _FLOATS) for name in INPUTS),
        (TOTALS, _FLOATS),
    ]
)
_OTHER_VERSION, _WITHOUT_INPUTS = b"other_version", b"without_inputs"


def outcomes_file(settings: Settings) -> Path:
    """Where the outcomes are."""
    return settings.data_path / OUTCOMES_FILE


def write_outcomes(matured: ir.Table, rows: ir.Table, file: Path) -> None:
    """Write the outcome of every decision whose window has closed, whole or not at all.

    Args:
        matured: those decisions.
        rows: training rows, one per drawn cluster.
        file: to write; its metadata counts decisions that cannot be used, of another feature version or logged without inputs.
    """
    drawn = rows.select("decision_id", "cluster_id", "draws", "impressions", "reward")
    placed = drawn.inner_join(matured.select("decision_id", "cluster_ids"), "decision_id")
    placed = placed.mutate(place=placed.cluster_ids.index(placed.cluster_id))
    lists = placed.group_by("decision_id").agg(
        drawn=placed.place.collect(order_by=placed.place),
        draws=placed.draws.collect(order_by=placed.place),
        shown=placed.impressions.collect(order_by=placed.place),
        rewards=placed.reward.collect(order_by=placed.place),
    )
    current = matured.feature_version == FEATURE_VERSION
    complete = matured.inputs.length() > 0
    left_out = matured.aggregate(other=(~current).sum().fill_null(0), bare=(current & ~complete).sum().fill_null(0)).to_pyarrow()
    metadata = {_OTHER_VERSION: str(left_out["other"][0]).encode(), _WITHOUT_INPUTS: str(left_out["bare"][0]).encode()}
    whole = matured.filter(current & complete).left_join(lists, "decision_id").order_by("decided_at", "decision_id")
    columns = ["decision_id", "user_id", "policy", "model_version", "arm", "k", "quotas", "caps", "features", "inputs"]
    whole = whole.select([*columns, "drawn", "draws", "shown", "rewards"], decided_at=whole.decided)
    batches = whole.to_pyarrow_batches(chunk_size=ROWS_AT_ONCE)
    with whole_file(file) as partial, outcomes_writer(partial, metadata) as writer:
        for batch in batches:
            writer.write_table(_split(pa.Table.from_batches([batch])))


def outcomes_writer(file: Path, metadata: dict[bytes, bytes]) -> pq.ParquetWriter:
    """A writer of outcomes: numbers that hardly repeat get no dictionary, and a compression that reads at the speed of memory."""
    repeated = ["user_id", "policy", "model_version", "arm"]
    return pq.ParquetWriter(file, OUTCOMES.with_metadata(metadata), compression="lz4", use_dictionary=repeated)


def left_out(file: pq.ParquetFile) -> list[str]:
    """Why decisions are missing from the file, as notes; empty when none is."""
    metadata = file.schema_arrow.metadata or {}
    other, bare = (int(metadata.get(key, b"0")) for key in (_OTHER_VERSION, _WITHOUT_INPUTS))
    notes = [f"{other:,} decisions of another feature version than {FEATURE_VERSION} were left out"] if other else []
    return notes + ([f"{bare:,} decisions that were logged without policy inputs were left out"] if bare else [])


def _split(table: pa.Table) -> pa.Table:
    """Inputs as a column each, so that an evaluation reads those it needs; lists of what was drawn never null."""
    columns = {name: table[name] for name in table.column_names if name not in {"inputs", "features"}}
    for name in ("drawn", "draws", "shown", "rewards"):
        lists = table[name].combine_chunks()
        starts = np.cumsum(np.append(0, pc.fill_null(pc.list_value_length(lists), 0).to_numpy())).astype(np.int32)
        columns[name] = pa.ListArray.from_arrays(starts, lists.flatten().cast(OUTCOMES.field(name).type.value_type))
    lengths = table["quotas"].combine_chunks().value_lengths().to_numpy()
    matrix = flat(table["inputs"]).reshape(-1, len(INPUTS))
    last = np.cumsum(lengths + 1) - 1
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    inputs = np.delete(matrix, last, axis=0)
    for place, name in enumerate(INPUTS):
        columns[name] = pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(inputs[:, place])))
    columns[TOTALS] = pa.ListArray.from_arrays(np.arange(len(last) + 1, dtype=np.int32) * len(INPUTS), pa.array(matrix[last].ravel()))
    features = flat(table["features"]).reshape(-1, len(FEATURE_NAMES))
    columns[RATES] = pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(features[:, FEATURE_NAMES.index("shrunk_rate")])))
    columns["features"] = table["features"]
    return pa.table([columns[field.name].cast(field.type) for field in OUTCOMES], OUTCOMES)


def flat(column: pa.ChunkedArray | pa.Array) -> Floats:
    """All values of a list column, one after the other."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return np.asarray(array.flatten().to_numpy(zero_copy_only=False))


def padded(column: pa.Array, width: int) -> Floats:
    """A list column as a matrix (rows, width), shorter lists filled up with 0."""
    return matrix(flat(column), column, width)


def matrix(values: Floats, lists: pa.Array, width: int) -> Floats:
    """Values that lie one after the other, in lists as long as these, as a matrix (rows, width) filled up with 0."""
    lengths = lists.value_lengths().to_numpy()
    if len(lengths) and (lengths == width).all():
        return np.asarray(values, np.float64).reshape(-1, width)
    result = np.zeros((len(lengths), width))
    result[np.arange(width) < lengths[:, None]] = values
    return result


def read_group(file: Path, group: int, columns: list[str] | None = None) -> pa.RecordBatch:
    """One row group as a batch; users as a dictionary. A group at a time: reading ahead would hold a whole log in memory."""
    with pq.ParquetFile(file, read_dictionary=["user_id"], pre_buffer=False) as source:
        table = source.read_row_group(group, columns=columns, use_threads=False)
    return table.unify_dictionaries().combine_chunks().to_batches()[0] if table.num_rows else pa.RecordBatch.from_pylist([], table.schema)
