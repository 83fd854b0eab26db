"""Redis killed, frozen or slow in the middle of 2,000 concurrent requests: an answer for each, flagged, and nothing logged is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import QuerySelector, Selection
from tests.served_world import REWARDED, Served
from tests.serving_faults import FAULTS, own_world
from tests.slow_proxy import SlowProxy, slow_proxy
from training.local_redis import local_redis

REQUESTS, K = 2_000, 5


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with own_world(tmp_path_factory.mktemp("faults")) as made:
        yield made


@pytest.fixture
def proxied(world: Served) -> Iterator[tuple[Served, SlowProxy]]:
    with slow_proxy(world.redis_url) as proxy:
        yield Served(folder=world.folder, redis_url=proxy.url), proxy


def check(selections: list[Selection], world: Served) -> None:
    assert len(selections) == REQUESTS
    assert all(selection.queries or selection.degraded for selection in selections)  # empty only when it would have been late
    logged = {selection.decision_id for selection in selections if selection.logged}
    assert logged <= {decision.decision_id for decision in world.decisions()}
    assert all(selection.degraded and selection.reason for selection in selections if not selection.logged)
    assert len(logged) < REQUESTS, "the fault came too late to matter"


def recovers(selector: QuerySelector) -> bool:
    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline:
        if not selector.select("u0", K).degraded:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_threads(world: Served, proxied: tuple[Served, SlowProxy], fault: str) -> None:
    served, proxy = proxied
    world.forget()
    with served.open(deadline_ms=3000.0) as selector:
        for user in REWARDED:
            selector.select(user, K)
        selections: list[Selection] = []
        start, halfway = threading.Barrier(REQUESTS // 2), threading.Event()

        def call(number: int) -> None:
            start.wait()  # else the first are served before the last thread is there
            selections.append(selector.select(REWARDED[number % 3], K))
            if len(selections) > REQUESTS // 10:
                halfway.set()
            selections.append(selector.select(REWARDED[number % 3], K))

        threads = [threading.Thread(target=call, args=(number,)) for number in range(REQUESTS // 2)]
        for thread in threads:
            thread.start()
        halfway.wait(10.0)
        with FAULTS[fault](world, proxy):
            for thread in threads:
                thread.join()
        check(selections, world)
        assert recovers(selector)


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_asyncio(world: Served, proxied: tuple[Served, SlowProxy], fault: str) -> None:
    served, proxy = proxied
    world.forget()

    async def run() -> list[Selection]:
        selector = served.open(deadline_ms=3000.0)
        for user in REWARDED:
            await selector.select_async(user, K)
        tasks = [asyncio.create_task(selector.select_async(REWARDED[number % 3], K)) for number in range(REQUESTS)]
        while sum(task.done() for task in tasks) < REQUESTS // 10:
            await asyncio.sleep(0.001)
        with FAULTS[fault](world, proxy):
            selections = await asyncio.gather(*tasks)
        for _ in range(100):
            if not (await selector.select_async("u0", K)).degraded:
                break
            await asyncio.sleep(0.05)
        else:
            raise AssertionError("no recovery")
        await selector.close_async()
        return selections

    check(asyncio.run(run()), world)


@pytest.mark.parametrize("way", ["threads", "asyncio"])
def test_a_busy_redis_that_answers_in_time_answers_everybody(world: Served, way: str) -> None:
    """Nobody is turned away whom there is time to serve."""
    with world.open(deadline_ms=6000.0) as selector:
        selections: list[Selection] = []

        def call(number: int) -> None:
            selections.append(selector.select(REWARDED[number % 3], K))

        async def run() -> None:
            selections.extend(await asyncio.gather(*(selector.select_async(REWARDED[number % 3], K) for number in range(REQUESTS))))
            await selector.close_async()

        if way == "threads":
            threads = [threading.Thread(target=call, args=(number,)) for number in range(REQUESTS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        else:
            asyncio.run(run())
    assert len(selections) == REQUESTS
    assert all(selection.logged and not selection.degraded for selection in selections)
    assert not selector.breaker.is_open


def test_killed_and_started_again(tmp_path: Path) -> None:
    """The same port, an empty store: answers go on from what was seen, and logging comes back by itself."""
    with own_world(tmp_path) as world, world.open(deadline_ms=500.0) as selector:
        selector.select("u0", K)
        port = int(world.redis_url.rsplit(":", 1)[1].split("/")[0])
        os.kill(world.redis.info("server")["process_id"], signal.SIGKILL)
        during = [selector.select("u0", K) for _ in range(50)]
        assert all(selection.degraded and not selection.logged and selection.queries for selection in during)
        with local_redis(port=port):
            deadline = time.monotonic() + 10.0
            while selector.select("u0", K).degraded:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert selector.select("u0", K).reason == "unknown user"
