"""`select` against the least that it could cost: bare redis-py reading the same fields, decoding them, and logging the same bytes.

50 clusters, k = 10, decision logged.
"""

from __future__ import annotations

import numpy as np
import redis

from benchmarks.result import Result
from benchmarks.timing import interleaved, microseconds
from benchmarks.world import NOW, K, World, served_world
from feature_repo import names
from feature_repo.keys import Keys
from serving import QuerySelector
from serving.features.feast_format import ReadCommand, field_name

ROUNDS = 5_000
USER = "user-50"


def floor_of(world: World, selector: QuerySelector, user: str = USER) -> list[object]:
    """HMGET, protobuf decode and XADD, by redis-py with its defaults (and hiredis)."""
    from feast.protos.feast.types.Value_pb2 import Value  # noqa: PLC0415 -- the selector does without Feast

    client = redis.Redis.from_url(world.redis_url)
    fields = [field_name(view, column.name) for view in names.VIEWS for column in names.served(view)]
    key = ReadCommand(names.PROJECT, ()).key(user)
    selector.select(user, K, now=NOW, seed=0)
    (stream,) = client.scan_iter(Keys(names.PROJECT).every_partition.decisions)
    record = client.xrevrange(stream, count=1)[0][1][names.RECORD_FIELD.encode()]

    def floor(_: int) -> None:
        for raw in client.hmget(key, fields):
            Value.FromString(raw)
        client.xadd(stream, {names.RECORD_FIELD: record})

    return [floor, {"bytes_read": sum(map(len, client.hmget(key, fields))), "bytes_logged": len(record)}]


def main() -> None:
    with served_world({USER: 50}) as world, QuerySelector.open(world.settings_file) as selector:
        floor, sizes = floor_of(world, selector)
        seconds = interleaved({"floor": floor, "select": lambda seed: selector.select(USER, K, now=NOW, seed=seed)}, rounds=ROUNDS)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    detail = sizes | {name: microseconds(values) for name, values in seconds.items()}
    Result(
        name="select_vs_floor", value=medians["select"] / medians["floor"], unit="ratio", better="lower", limit=1.6, detail=detail
    ).write()
    print(medians, medians["select"] / medians["floor"])


if __name__ == "__main__":
    main()
