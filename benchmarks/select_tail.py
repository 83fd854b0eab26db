"""The tail of `select` (p99 over p50, 20,000 calls) and its growth from 10 to 100 clusters; decision logged."""

from __future__ import annotations

import numpy as np

from benchmarks.result import Result
from benchmarks.timing import interleaved, microseconds
from benchmarks.world import NOW, K, served_world
from serving import QuerySelector

TAIL_ROUNDS, GROWTH_ROUNDS = 20_000, 3_000
SIZES = (10, 50, 100)


def main() -> None:
    with served_world({f"user-{size}": size for size in SIZES}) as world, QuerySelector.open(world.settings_file) as selector:
        call = lambda size: lambda seed: selector.select(f"user-{size}", K, now=NOW, seed=seed)  # noqa: E731
        growth = interleaved({str(size): call(size) for size in SIZES}, rounds=GROWTH_ROUNDS)
        tail = interleaved({"select": call(50)}, rounds=TAIL_ROUNDS)["select"]
    medians = {size: float(np.median(values)) for size, values in growth.items()}
    for name, value, limit, detail in (
        ("select_growth", medians["100"] / medians["10"], 1.6, {size: microseconds(values) for size, values in growth.items()}),
        ("select_p99_over_p50", float(np.percentile(tail, 99) / np.median(tail)), 3.0, microseconds(tail, (50, 90, 99, 99.9))),
    ):
        print(name, value, detail)
        Result(name=name, value=value, unit="ratio", better="lower", limit=limit, detail=detail).write()


if __name__ == "__main__":
    main()
