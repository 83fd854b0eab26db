"""`select_many` for 1,000 users, per user, against `select` for the same users; 50 clusters, k = 10, decisions logged."""

from __future__ import annotations

import statistics
import time

from benchmarks.result import Result
from benchmarks.world import NOW, K, served_world
from serving import QuerySelector

USERS, ROUNDS = 1_000, 7


def main() -> None:
    users = [f"user-{number}" for number in range(USERS)]
    many, one = [], []
    with served_world(dict.fromkeys(users, 50)) as world, QuerySelector.open(world.settings_file) as selector:
        for _ in range(ROUNDS):
            start = time.perf_counter()
            together = selector.select_many(users, K, now=NOW, seeds=range(USERS))
            between = time.perf_counter()
            alone = [selector.select(user, K, now=NOW, seed=seed) for seed, user in enumerate(users)]
            one.append((time.perf_counter() - between) / USERS)
            many.append((between - start) / USERS)
            assert together == alone, "the decisions differ"  # noqa: S101
    ratio = statistics.median(many) / statistics.median(one)
    detail = {"many_us_per_user": statistics.median(many) * 1e6, "select_us": statistics.median(one) * 1e6, "users": USERS}
    print("select_many_vs_select", ratio, detail)
    Result(name="select_many_vs_select", value=ratio, unit="ratio", better="lower", limit=0.5, detail=detail).write()


if __name__ == "__main__":
    main()
