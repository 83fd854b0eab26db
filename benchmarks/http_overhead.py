"""What HTTP adds: `POST /v1/select` on one connection to one worker, against the same call in this process. Also the service's memory."""

from __future__ import annotations

import http.client
import json
import os
from pathlib import Path

import numpy as np

from benchmarks.result import Result
from benchmarks.timing import interleaved, microseconds
from benchmarks.world import K, http_service, served_world
from serving import QuerySelector

ROUNDS = 3_000
USER = "user-50"
_JSON = {"content-type": "application/json"}


def main() -> None:
    with (
        served_world({USER: 50}) as world,
        QuerySelector.open(world.settings_file) as selector,
        http_service(world, burst=1_000_000) as (process, port),
    ):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30.0)

        def post(seed: int) -> None:
            connection.request("POST", "/v1/select", json.dumps({"user_id": USER, "k": K, "seed": seed}), _JSON)
            answer = connection.getresponse()
            if answer.status != 200 or not json.loads(answer.read())["queries"]:
                raise RuntimeError(f"status {answer.status}")

        seconds = interleaved({"library": lambda seed: selector.select(USER, K, seed=seed), "http": post}, rounds=ROUNDS)
        memory = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    detail = {name: microseconds(values) for name, values in seconds.items()}
    overhead = 1000.0 * float(np.median(seconds["http"]) - np.median(seconds["library"]))
    print(overhead, memory, detail)
    Result(name="http_overhead_ms", value=overhead, unit="ms", better="lower", limit=1.5, detail=detail).write()
    Result(name="serving_rss_mb", value=memory, unit="MB", better="lower", limit=300.0, detail={"after_requests": ROUNDS}).write()


if __name__ == "__main__":
    main()
