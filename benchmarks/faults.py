"""How much later than its deadline the last of 2,000 concurrent callers is answered, when Redis freezes, is slow, or breaks off.

The deadline is what two cores need for 2,000 requests at once, three seconds. A second figure: 200 callers under the default of 50 ms.
In the details: 2,000 callers under the default; how many of the answers were logged, drawn without Redis, or empty because even that
would have come late; and by how much as many callers miss the same deadline when they only wait for a lock until then.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from benchmarks.result import Result
from serving import QuerySelector, Selection
from tests.served_world import REWARDED, Served
from tests.serving_faults import FAULTS, own_world
from tests.slow_proxy import SlowProxy, slow_proxy

REQUESTS, K = 2_000, 5
FEW = 200  # callers at once under the default deadline
DEADLINE_MS, DEFAULT_MS, LATENESS_MS = 3000.0, 50.0, 20.0


Answers: TypeAlias = list[tuple[float, Selection]]  # seconds that a caller waited, and for what


def all_at_once(call: Callable[[int], None], callers: int) -> list[threading.Thread]:
    """A thread for each caller, and all of them let go."""
    start = threading.Barrier(callers + 1)

    def run(number: int) -> None:
        start.wait()
        call(number)

    running = [threading.Thread(target=run, args=(number,)) for number in range(callers)]
    for thread in running:
        thread.start()
    start.wait()
    return running


def threads(world: Served, served: Served, proxy: SlowProxy, fault: str, *, deadline_ms: float, callers: int) -> Answers:
    """Every caller is a thread, and all start at once."""
    answers: Answers = []
    with served.open(deadline_ms=deadline_ms) as selector:
        for user in REWARDED:
            selector.select(user, K)

        def call(number: int) -> None:
            began = time.monotonic()
            selection = selector.select(REWARDED[number % 3], K)
            answers.append((time.monotonic() - began, selection))

        running = all_at_once(call, callers)
        while len(answers) < callers // 20:
            time.sleep(0.001)
        with FAULTS[fault](world, proxy):
            for thread in running:
                thread.join()
    return answers


def threads_doing_nothing(deadline_ms: float, callers: int) -> float:
    """Seconds of the slowest of as many threads that only wait."""
    never, seconds = threading.Lock(), []

    def call(_: int) -> None:
        began = time.monotonic()
        never.acquire(timeout=deadline_ms / 1000.0)
        seconds.append(time.monotonic() - began)

    with never:
        for thread in all_at_once(call, callers):
            thread.join()
    return max(seconds)


def tasks(world: Served, served: Served, proxy: SlowProxy, fault: str, *, deadline_ms: float, callers: int) -> Answers:
    """The same with a task for each caller."""

    async def call(selector: QuerySelector, number: int) -> tuple[float, Selection]:
        began = time.monotonic()
        selection = await selector.select_async(REWARDED[number % 3], K)
        return time.monotonic() - began, selection

    async def run() -> Answers:
        selector = served.open(deadline_ms=deadline_ms)
        for user in REWARDED:
            await selector.select_async(user, K)
        running = [asyncio.create_task(call(selector, number)) for number in range(callers)]
        while sum(task.done() for task in running) < callers // 20:
            await asyncio.sleep(0.001)
        with FAULTS[fault](world, proxy):
            answers = await asyncio.gather(*running)
        await selector.close_async()
        return answers

    return asyncio.run(run())


def tasks_doing_nothing(deadline_ms: float, callers: int) -> float:
    """Seconds of the slowest of as many tasks that only wait."""

    async def call(never: asyncio.Lock) -> float:
        began = time.monotonic()
        try:
            async with asyncio.timeout(deadline_ms / 1000.0):
                await never.acquire()
        except TimeoutError:
            pass
        return time.monotonic() - began

    async def run() -> float:
        never = asyncio.Lock()
        async with never:
            return max(await asyncio.gather(*(call(never) for _ in range(callers))))

    return asyncio.run(run())


def kind(selection: Selection) -> str:
    """What a caller got."""
    return "logged" if selection.logged else "without Redis" if selection.queries else "empty"


def main() -> None:
    late: dict[str, float] = {}
    got: dict[str, dict[str, int]] = {}
    nothing: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, own_world(Path(folder)) as world, slow_proxy(world.redis_url) as proxy:
        served = Served(folder=world.folder, redis_url=proxy.url)
        for deadline_ms, callers in ((DEADLINE_MS, REQUESTS), (DEFAULT_MS, FEW), (DEFAULT_MS, REQUESTS)):
            for way, doing_nothing in ((tasks, tasks_doing_nothing), (threads, threads_doing_nothing)):
                for fault in FAULTS:
                    answers = way(world, served, proxy, fault, deadline_ms=deadline_ms, callers=callers)
                    name = f"{callers} {way.__name__}, {fault}, deadline {deadline_ms:g} ms"
                    late[name] = round(1000.0 * max(seconds for seconds, _ in answers) - deadline_ms, 1)
                    got[name] = dict(Counter(kind(selection) for _, selection in answers))
                    print(name, late[name], got[name], flush=True)
                name = f"{callers} {way.__name__}, deadline {deadline_ms:g} ms"
                nothing[name] = round(1000.0 * doing_nothing(deadline_ms, callers) - deadline_ms, 1)
                print("doing nothing:", name, nothing[name], flush=True)
    detail = {"late_ms": late, "answers": got, "late_doing_nothing_ms": nothing}
    for name, callers, deadline_ms in (("faults_late_ms", REQUESTS, DEADLINE_MS), ("faults_late_default_ms", FEW, DEFAULT_MS)):
        worst = max(value for way, value in late.items() if way.startswith(f"{callers} ") and f"deadline {deadline_ms:g} " in way)
        Result(name=name, value=worst, unit="ms", better="lower", limit=LATENESS_MS, detail=detail).write()


if __name__ == "__main__":
    main()
