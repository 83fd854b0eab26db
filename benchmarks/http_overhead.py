"""What HTTP adds: `POST /v1/select` on one connection to one worker, against the same call in this process. Also the service's memory."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.result import Result
from benchmarks.timing import interleaved, microseconds
from benchmarks.world import K, free_port, served_world
from serving import QuerySelector

ROUNDS = 3_000
USER = "user-50"
_JSON = {"content-type": "application/json"}


def main() -> None:
    with served_world({USER: 50}) as world, QuerySelector.open(world.settings_file) as selector:
        port = free_port()
        environment = os.environ | {"QUERY_REWARDS_HTTP__PORT": str(port), "QUERY_REWARDS_HTTP__BURST": "1000000"}
        command = [sys.executable, "-m", "serving", "serve", "--settings", str(world.settings_file)]
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
            try:
                connection = _connected(port)

                def post(seed: int) -> None:
                    connection.request("POST", "/v1/select", json.dumps({"user_id": USER, "k": K, "seed": seed}), _JSON)
                    answer = connection.getresponse()
                    if answer.status != 200 or not json.loads(answer.read())["queries"]:
                        raise RuntimeError(f"status {answer.status}")

                seconds = interleaved({"library": lambda seed: selector.select(USER, K, seed=seed), "http": post}, rounds=ROUNDS)
                memory = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
            finally:
                process.terminate()
    detail = {name: microseconds(values) for name, values in seconds.items()}
    overhead = 1000.0 * float(np.median(seconds["http"]) - np.median(seconds["library"]))
    print(overhead, memory, detail)
    Result(name="http_overhead_ms", value=overhead, unit="ms", better="lower", limit=1.5, detail=detail).write()
    Result(name="serving_rss_mb", value=memory, unit="MB", better="lower", limit=300.0, detail={"after_requests": ROUNDS}).write()


def _connected(port: int) -> http.client.HTTPConnection:
    deadline = time.monotonic() + 30.0
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30.0)
        try:
            connection.connect()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return connection


if __name__ == "__main__":
    main()
