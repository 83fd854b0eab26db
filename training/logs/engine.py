"""The engine of the batch steps: DuckDB through Ibis."""

from __future__ import annotations

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir


@ibis.udf.scalar.builtin  # type: ignore[untyped-decorator]
def epoch_us(value: dt.timestamp) -> dt.int64:
    """Microseconds since 1970, by the engine's own function."""


@ibis.udf.scalar.builtin(name="hash")  # type: ignore[untyped-decorator]
def _hash(value: dt.string) -> dt.uint64:
    """The engine's own; only equal texts of one query need to be equal."""


def deduplicated(events: ir.Table) -> ir.Table:
    """Feedback in which each event_id stands once, with the least of each other column where it came more than once.

    Few events come again. Which ones is asked here and now, of hashes, and only those are grouped: grouping all by their ids would take
    a third of the time of a fold, and most of its memory.
    """
    hashed = events.mutate(hashed=_hash(events.event_id))
    counts = hashed.group_by("hashed").agg(times=hashed.count())
    repeated = counts.filter(counts.times > 1).select("hashed").to_pyarrow()
    if not repeated.num_rows:
        return events
    others = hashed.anti_join(ibis.memtable(repeated), "hashed").select(events.columns)
    again = hashed.semi_join(ibis.memtable(repeated), "hashed")
    least = again.group_by("event_id").agg(**{name: again[name].min() for name in events.columns if name != "event_id"})
    return others.union(least.select(events.columns))


def engine() -> ibis.BaseBackend:
    """A DuckDB of its own, for one step: one thread, so that sums are added in one order and the same log gives the same bytes."""
    connection = ibis.duckdb.connect()
    connection.raw_sql("SET enable_progress_bar = false; SET threads = 1")
    return connection
