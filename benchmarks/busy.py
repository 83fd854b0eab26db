"""Share of `/v1/select` that is not logged while Redis is well and the service itself is busy; eight clients, a deadline of 50 ms.

Three figures: alone, beside feedback bodies of 1 MB, beside batches of 1,000 users.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.result import Result
from benchmarks.world import K, http_service, served_world

CLIENTS, SECONDS, LIMIT = 8, 6.0, 0.01
USERS = [f"user-{number}" for number in range(50)]


def post(port: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30.0)
    try:
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
        if response.status != http.HTTPStatus.OK:
            raise RuntimeError(f"{path}: {response.status} {answer}")
    finally:
        connection.close()
    return answer


def bodies() -> tuple[str, dict[str, Any]]:
    """Feedback of about 1 MB."""
    common = {
        "decision_id": "d" * 36,
        "cluster_id": "c",
        "query_id": "q",
        "item_id": "x",
        "action": "click",
        "occurred_at": time.time_ns() // 1000,
    }
    return "/v1/feedback", {"events": [{**common, "event_id": f"e{number}", "user_id": f"u{number}"} for number in range(5000)]}


def batches() -> tuple[str, dict[str, Any]]:
    return "/v1/select:batch", {"user_ids": USERS * 20, "k": K}


def unlogged(port: int, others: Callable[[], tuple[str, dict[str, Any]]] | None) -> tuple[float, int]:
    """Share of the selections that were not logged, and how many there were; `others` are posted four times a second."""
    stop, logged = threading.Event(), []

    def select() -> None:
        while not stop.is_set():
            logged.append(post(port, "/v1/select", {"user_id": USERS[len(logged) % len(USERS)], "k": K})["logged"])
            time.sleep(0.01)

    def disturb() -> None:
        while others is not None and not stop.wait(0.25):
            post(port, *others())

    with ThreadPoolExecutor(CLIENTS + 1) as pool:
        clients = [*(pool.submit(select) for _ in range(CLIENTS)), pool.submit(disturb)]
        time.sleep(SECONDS)
        stop.set()
    for client in clients:
        client.result()
    return logged.count(False) / len(logged), len(logged)


def main() -> None:
    with served_world(dict.fromkeys(USERS, 50), deadline_ms=50.0) as world, http_service(world, burst=1_000_000) as (_, port):
        for name, others in (("alone", None), ("beside_bodies", bodies), ("beside_batches", batches)):
            share, count = unlogged(port, others)
            print(f"busy_{name}", share, count, flush=True)
            detail = {"selections": count}
            Result(name=f"busy_{name}_unlogged", value=share, unit="ratio", better="lower", limit=LIMIT, detail=detail).write()


if __name__ == "__main__":
    main()
