"""Schemas of every Parquet file."""

from __future__ import annotations

import pyarrow as pa

from feature_repo import names

TIME = pa.timestamp("us", tz="UTC")

EVENTS = "events"  # of a snapshot's user: how many events and draws its sums have counted; not a feature
RECLUSTERINGS = "reclusterings"  # of a snapshot's user: how many its sums have been through; not a feature, absent before there were any

ENGAGEMENTS = pa.schema([("user_id", pa.string()), ("item_id", pa.string()), ("action", pa.string()), ("occurred_at", TIME)])
FEEDBACK = pa.schema(
    [
        ("event_id", pa.string()),
        ("decision_id", pa.string()),
        ("user_id", pa.string()),
        ("cluster_id", pa.string()),
        ("query_id", pa.string()),
        ("item_id", pa.string()),
        ("action", pa.string()),
        ("occurred_at", TIME),
    ]
)
DECISIONS = pa.schema(
    [
        ("decision_id", pa.string()),
        ("user_id", pa.string()),
        ("decided_at", TIME),
        ("policy", pa.string()),
        ("model_version", pa.string()),
        ("k", pa.int32()),
        ("seed", pa.int64()),
        ("feature_version", pa.int32()),
        ("cluster_ids", pa.list_(pa.string())),
        ("features", pa.list_(pa.float32())),  # (clusters x features), row by row
        ("scores", pa.list_(pa.float64())),
        ("quotas", pa.list_(pa.float64())),
        ("caps", pa.list_(pa.float64())),
        (
            "queries",
            pa.list_(pa.struct([("item_id", pa.string()), ("cluster_id", pa.string()), ("propensity", pa.float64())])),
        ),
        ("context", pa.map_(pa.string(), pa.string())),
        ("degraded", pa.bool_()),
        ("inputs", pa.list_(pa.float64())),  # (clusters + 1) x 8, row by row; see bandit/policy/logged_inputs.py
        ("arm", pa.string()),
        ("mode", pa.string()),
    ]
)

DEAD_LETTERS = pa.schema([("stream", pa.string()), ("entry_id", pa.string()), ("record", pa.binary()), ("reason", pa.string())])

REJECTED = pa.schema([("file", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("content", pa.string())])

SNAPSHOT_TIME = pa.timestamp("us")  # Feast reads naive times as UTC; with a zone, DuckDB would cast them by the machine's own
_TYPES = {
    "int64": pa.int64(),
    "int64[]": pa.list_(pa.int64()),
    "float64[]": pa.list_(pa.float64()),
    "string[]": pa.list_(pa.string()),
}


def _snapshot(view: str, *more: tuple[str, pa.DataType]) -> pa.Schema:
    features = [(column.name, _TYPES[column.type]) for column in names.VIEWS[view]]
    return pa.schema([(names.JOIN_KEY, pa.string()), *features, *more, (names.TIMESTAMP, SNAPSHOT_TIME)])


USER_CLUSTERS = _snapshot(names.USER_CLUSTERS)
CLUSTER_REWARDS = _snapshot(names.CLUSTER_REWARDS, (EVENTS, pa.int64()), (RECLUSTERINGS, pa.int64()))

MEMBERS = pa.schema([("user_id", pa.string()), ("cluster_id", pa.string()), ("item_id", pa.string())])
LINEAGE = pa.schema(
    [
        ("user_id", pa.string()),
        ("effective_at", pa.int64()),  # UTC microseconds
        ("from_cluster", pa.string()),
        ("to_cluster", pa.string()),
        ("share", pa.float64()),
    ]
)
