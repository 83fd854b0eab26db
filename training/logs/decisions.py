"""Decisions: the record that serving logs, read and checked, and as rows of the Parquet log."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pyarrow as pa

from bandit.ids import id_problem
from bandit.records import Decision
from bandit.rewards.feedback import DECODE_ERRORS, Rejected, time_problem
from training.logs.schemas import DECISIONS

_decoder = msgspec.msgpack.Decoder(Decision)


def read_decision(record: bytes, arrived: int) -> Decision | Rejected:
    """The decision in a record of the stream, or why the log cannot hold it: one that is bad must not stop those behind it.

    Args:
        record: MessagePack.
        arrived: when it came to Redis, UTC microseconds.
    """
    try:
        decision = _decoder.decode(record)
    except DECODE_ERRORS as error:
        return Rejected(f"not a decision: {error}")
    reason = _problem(decision, arrived)
    return Rejected(reason) if reason else decision


def _problem(decision: Decision, arrived: int) -> str:
    n = len(decision.cluster_ids)
    rows = f"expected as many rows as there are candidates, {n}, and one at least"
    checks = {
        "decision_id": id_problem(decision.decision_id),
        "user_id": id_problem(decision.user_id),
        "features": rows if not n or len(decision.features) % (4 * n) else "",
        "scores": rows if len(decision.scores) != n else "",
        "quotas": rows if len(decision.quotas) != n else "",
        "inputs": "" if not decision.inputs or len(decision.inputs) == 64 * (n + 1) else rows,
        "k": "" if 0 < decision.k < 2**31 else f"expected a number of queries, received {decision.k}",
        "seed": "" if -(2**63) <= decision.seed < 2**63 else f"expected 64 bits, received {decision.seed}",
        "feature_version": "" if 0 <= decision.feature_version < 2**31 else f"expected 31 bits, received {decision.feature_version}",
        "decided_at": time_problem(decision.decided_at, arrived),
    }
    return next((f"{name}: {problem}" for name, problem in checks.items() if problem), "")


def decision_table(decisions: Sequence[Decision]) -> pa.Table:
    """Decisions as rows of the Parquet log."""
    columns = {
        name: [getattr(decision, name) for decision in decisions]
        for name in DECISIONS.names
        if name not in {"features", "queries", "context", "inputs"}
    }
    columns["features"] = [decision.feature_matrix().ravel() for decision in decisions]
    columns["inputs"] = [decision.input_matrix().ravel() for decision in decisions]
    columns["queries"] = [[msgspec.to_builtins(query) for query in decision.queries] for decision in decisions]
    columns["context"] = [list(decision.context.items()) for decision in decisions]
    return pa.table([pa.array(columns[field.name], field.type) for field in DECISIONS], schema=DECISIONS)
