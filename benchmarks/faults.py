"""How much later than its deadline the last of 2,000 concurrent callers is answered, when Redis freezes, is slow, or breaks off.

The deadline is what two cores need for 2,000 requests at once, three seconds; the same with the default of 50 ms is in the details.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.result import Result
from serving import QuerySelector
from tests.served_world import REWARDED, Served
from tests.serving_faults import FAULTS, own_world
from tests.slow_proxy import SlowProxy, slow_proxy

REQUESTS, K = 2_000, 5
DEADLINE_MS, DEFAULT_MS, LATENESS_MS = 3000.0, 50.0, 20.0


def threads(world: Served, served: Served, proxy: SlowProxy, fault: str, deadline_ms: float) -> list[float]:
    """Seconds of each call; every caller is a thread, and all start at once."""
    seconds: list[float] = []
    with served.open(deadline_ms=deadline_ms) as selector:
        for user in REWARDED:
            selector.select(user, K)
        start = threading.Barrier(REQUESTS + 1)

        def call(number: int) -> None:
            start.wait()
            began = time.monotonic()
            selector.select(REWARDED[number % 3], K)
            seconds.append(time.monotonic() - began)

        running = [threading.Thread(target=call, args=(number,)) for number in range(REQUESTS)]
        for thread in running:
            thread.start()
        start.wait()
        while len(seconds) < REQUESTS // 20:
            time.sleep(0.001)
        with FAULTS[fault](world, proxy):
            for thread in running:
                thread.join()
    return seconds


def tasks(world: Served, served: Served, proxy: SlowProxy, fault: str, deadline_ms: float) -> list[float]:
    """The same with a task for each caller."""

    async def call(selector: QuerySelector, number: int) -> float:
        began = time.monotonic()
        await selector.select_async(REWARDED[number % 3], K)
        return time.monotonic() - began

    async def run() -> list[float]:
        selector = served.open(deadline_ms=deadline_ms)
        for user in REWARDED:
            await selector.select_async(user, K)
        running = [asyncio.create_task(call(selector, number)) for number in range(REQUESTS)]
        while sum(task.done() for task in running) < REQUESTS // 20:
            await asyncio.sleep(0.001)
        with FAULTS[fault](world, proxy):
            seconds = await asyncio.gather(*running)
        await selector.close_async()
        return seconds

    return asyncio.run(run())


def main() -> None:
    late: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, own_world(Path(folder)) as world, slow_proxy(world.redis_url) as proxy:
        served = Served(folder=world.folder, redis_url=proxy.url)
        for deadline_ms in (DEADLINE_MS, DEFAULT_MS):
            for way in (tasks, threads):
                for fault in FAULTS:
                    seconds = way(world, served, proxy, fault, deadline_ms)
                    late[f"{way.__name__}, {fault}, deadline {deadline_ms:g} ms"] = round(1000.0 * max(seconds) - deadline_ms, 1)
                    print(way.__name__, fault, deadline_ms, late[f"{way.__name__}, {fault}, deadline {deadline_ms:g} ms"], flush=True)
    worst = max(value for name, value in late.items() if f"deadline {DEADLINE_MS:g}" in name)
    Result(name="faults_late_ms", value=worst, unit="ms", better="lower", limit=LATENESS_MS, detail=late).write()


if __name__ == "__main__":
    main()
