"""Decisions: the record that serving logs, read and checked, and as rows of the Parquet log."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pyarrow as pa

from bandit.records import Decision
from training.tables import DECISIONS

_CALENDAR_END = 253_402_300_800_000_000  # the year 10000
_decoder = msgspec.msgpack.Decoder(Decision)


def read_decision(record: bytes) -> Decision | str:
    """The decision in a record of the stream, or why the log cannot hold it: one that is bad must not stop those behind it."""
    try:
        decision = _decoder.decode(record)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return f"not a decision: {error}"
    n = len(decision.cluster_ids)
    sizes = {
        "features": len(decision.features) % (4 * n) if n else 1,
        "scores": len(decision.scores) - n,
        "quotas": len(decision.quotas) - n,
    }
    for name, excess in sizes.items():
        if excess:
            return f"{name}: expected as many rows as there are candidates, {n}, and one at least, received {excess:+d}"
    if not 0 < decision.k < 2**31:
        return f"k: expected a number of queries, received {decision.k}"
    if not 0 < decision.decided_at < _CALENDAR_END:
        return f"decided_at: expected UTC microseconds, received {decision.decided_at}"
    return decision


def decision_table(decisions: Sequence[Decision]) -> pa.Table:
    """Decisions as rows of the Parquet log."""
    columns = {
        name: [getattr(decision, name) for decision in decisions]
        for name in DECISIONS.names
        if name not in {"features", "queries", "context"}
    }
    columns["features"] = [decision.feature_matrix().ravel() for decision in decisions]
    columns["queries"] = [[msgspec.to_builtins(query) for query in decision.queries] for decision in decisions]
    columns["context"] = [list(decision.context.items()) for decision in decisions]
    return pa.table([pa.array(columns[field.name], field.type) for field in DECISIONS], schema=DECISIONS)
