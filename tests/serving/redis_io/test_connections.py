"""Forks, cancellations, interrupts, event loops, and what servers do to connections: no answer of another user, nothing lost."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import random
import signal
import socket
import threading
import time
from typing import Any

import pytest
import redis

from bandit.errors import DependencyUnavailableError
from serving import QuerySelector, Selection
from serving.redis_io.resolver import RESOLVER
from tests.served_world import REWARDED, Served, copied, hand_over
from tests.slow_proxy import slow_proxy
from tests.strategies import random_model
from training.local_redis import local_redis

K = 5
fork = multiprocessing.get_context("fork")


def of_another(user: str, selection: Selection) -> bool:
    return any(not query.item_id.startswith(f"{user}-") for query in selection.queries)


def recovers(selector: QuerySelector, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if selector.select("u0", K).logged:
            return True
        time.sleep(0.05)
    return False


def test_forked_workers_have_connections_of_their_own_and_see_new_models(served: Served) -> None:
    with served.open("bandit", deadline_ms=2000.0, model_poll_seconds=0.05) as selector:
        selector.select("u0", K)
        promoted = fork.Event()
        results = fork.Queue()

        def work(number: int) -> None:
            bad = unlogged = 0
            for call in range(100):
                user = REWARDED[(number + call) % 3]
                selection = selector.select(user, K)
                bad += of_another(user, selection)
                unlogged += not selection.logged
            bad += of_another("u1", asyncio.run(selector.select_async("u1", K)))
            promoted.wait(30.0)
            time.sleep(1.0)
            results.put((bad, unlogged, selector.select("u1", K).model_version))

        workers = [fork.Process(target=work, args=(number,)) for number in range(3)]
        for worker in workers:
            worker.start()
        hand_over(served.redis, "7", random_model(1))
        promoted.set()
        assert [results.get(timeout=60.0) for _ in workers] == [(0, 0, "7")] * 3
        for worker in workers:
            worker.join()


def test_callers_with_their_own_time_limits_leave_the_service_whole_after_stalls(served: Served) -> None:
    async def run() -> list[bool]:
        selector = served.open(deadline_ms=200.0, connections=4)
        stop = time.monotonic() + 2.5

        async def call(number: int) -> None:
            while time.monotonic() < stop:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(selector.select_async(REWARDED[number % 3], K), 0.06)
                await asyncio.sleep(0.02)

        async def stall() -> None:
            for _ in range(3):
                await asyncio.sleep(0.5)
                await asyncio.to_thread(served.redis.execute_command, "DEBUG", "SLEEP", "0.1")

        await asyncio.gather(stall(), *(call(number) for number in range(40)))
        await asyncio.sleep(1.0)
        logged = [(await selector.select_async("u1", K)).logged for _ in range(10)]
        await selector.close_async()
        return logged

    assert asyncio.run(run()) == [True] * 10


class Interrupt(Exception):  # noqa: N818 -- as KeyboardInterrupt
    pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # an interrupt inside of redis-py's __del__
def test_an_exception_out_of_a_signal_handler_costs_no_turn_and_mixes_no_answers(served: Served) -> None:
    rng, inside, hits = random.Random(1), False, 0

    def handle(*_: Any) -> None:
        if inside:
            raise Interrupt

    before = signal.signal(signal.SIGALRM, handle)
    try:
        with served.open(deadline_ms=2000.0, connections=2) as selector:
            calls = 0
            while hits < 10_000 and calls < 100_000:
                user = REWARDED[calls % 3]
                calls += 1
                try:
                    inside = True
                    signal.setitimer(signal.ITIMER_REAL, rng.uniform(2e-5, 8e-4))
                    selection = selector.select(user, K)
                    inside = False
                    assert not of_another(user, selection)
                except Interrupt:
                    hits += 1
                inside = False
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            assert hits == 10_000
            assert recovers(selector)
            logged: list[bool] = []
            threads = [threading.Thread(target=lambda: logged.append(selector.select("u0", K).logged)) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert logged == [True] * 8
            assert selector._connections._admission.free == 2
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def test_two_loops_at_once_and_loop_after_loop(served: Served) -> None:
    with served.open(deadline_ms=3000.0) as selector:
        answers: list[tuple[str, Selection]] = []

        async def run() -> None:
            async def call(number: int) -> None:
                user = REWARDED[number % 3]
                answers.append((user, await selector.select_async(user, K)))

            for _ in range(10):
                await asyncio.gather(*(call(number) for number in range(20)))

        threads = [threading.Thread(target=lambda: asyncio.run(run())) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        answers += [("u1", asyncio.run(selector.select_async("u1", K))) for _ in range(3)]
    assert len(answers) == 403
    assert not [answer for user, answer in answers if of_another(user, answer) or not answer.logged]


def both(selector: QuerySelector, user: str = "u0") -> tuple[Selection, Selection]:
    return selector.select(user, K), asyncio.run(selector.select_async(user, K))


def test_a_refused_password_and_a_refused_database_are_never_used(served: Served) -> None:
    with local_redis(options=("--appendonly", "no")) as url:
        base = url.rsplit("/", 1)[0]
        world = copied(served, f"{base}/9")
        copied(served, f"{base}/0")
        admin = redis.Redis.from_url(f"{base}/0")
        admin.execute_command("ACL", "SETUSER", "serve", "on", ">pw", "~*", "+@all")
        allowed = Served(folder=world.folder, redis_url=f"{base}/9".replace("redis://", "redis://serve:pw@"))
        with allowed.open(deadline_ms=500.0, breaker_seconds=0.05) as selector:
            assert [one.logged for one in both(selector)] == [True, True]
            admin.execute_command("ACL", "SETUSER", "serve", "-select")
            admin.execute_command("CLIENT", "KILL", "USER", "serve")
            for _ in range(5):
                assert [one.logged for one in both(selector)] == [False, False]
            admin.execute_command("ACL", "SETUSER", "serve", "+select", "resetpass", ">other")
            for _ in range(5):
                assert [one.logged for one in both(selector)] == [False, False]
            assert not [key for key in admin.scan_iter("*") if admin.type(key) == b"stream"]
            admin.execute_command("ACL", "SETUSER", "serve", ">pw")
            assert recovers(selector)
            assert asyncio.run(selector.select_async("u0", K)).logged
            admin.execute_command("ACL", "SETUSER", "serve", "-xadd")
            refused = both(selector)
            assert [(one.logged, len(one.queries)) for one in refused] == [(False, K)] * 2


def test_a_failover_behind_one_name_is_followed(served: Served) -> None:
    with local_redis() as first, local_redis() as second, slow_proxy(first) as proxy:
        copied(served, first)
        copied(served, second)
        world = Served(folder=served.folder, redis_url=proxy.url)
        with world.open(deadline_ms=1000.0) as selector:
            assert [one.logged for one in both(selector)] == [True, True]

            async def run() -> list[bool]:
                warm = await selector.select_async("u0", K)
                host, port = second.removeprefix("redis://").split("/")[0].split(":")
                redis.Redis.from_url(first).execute_command("REPLICAOF", host, port)
                proxy.lead_to(second)
                later = [(selector.select("u0", K), await selector.select_async("u0", K)) for _ in range(4)]
                return [warm.logged, *(one.logged for pair in later[2:] for one in pair)]

            assert asyncio.run(run()) == [True] * 5


def test_connections_that_the_server_closed_while_idle_cost_no_decision(served: Served) -> None:
    with local_redis(options=("--timeout", "1")) as url, copied(served, url).open(deadline_ms=1000.0) as selector:

        async def run() -> list[bool]:
            logged = []
            for pause in (2.5, 0.0):
                logged += [selector.select("u0", K).logged, (await selector.select_async("u0", K)).logged]
                await asyncio.sleep(pause)
            return logged

        assert asyncio.run(run()) == [True] * 4


def test_a_silent_name_server_keeps_nobody_past_the_deadline(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    world = Served(folder=served.folder, redis_url=served.redis_url.replace("127.0.0.1", "localhost"))
    with world.open(deadline_ms=300.0) as selector:
        silent, looked_up = threading.Event(), socket.getaddrinfo

        def never(host: str, *arguments: Any, **options: Any) -> Any:
            if host == "localhost":
                silent.wait(10.0)
            return looked_up(host, *arguments, **options)

        monkeypatch.setattr(socket, "getaddrinfo", never)
        start = time.monotonic()
        assert not selector.select("u0", K).logged
        assert time.monotonic() - start < 0.6
        silent.set()
        assert recovers(selector)
        silent.clear()
        selector._connections.close()
        assert selector.select("u0", K).logged  # at the address of last time
        silent.set()


def test_a_silent_name_server_does_not_hold_up_the_end_of_a_loop(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    silent, looked_up = threading.Event(), socket.getaddrinfo

    def never(host: str, *arguments: Any, **options: Any) -> Any:
        if host == "localhost":
            silent.wait(10.0)
        return looked_up(host, *arguments, **options)

    world = Served(folder=served.folder, redis_url=served.redis_url.replace("127.0.0.1", "localhost"))
    with world.open(deadline_ms=300.0) as selector:
        monkeypatch.setattr(socket, "getaddrinfo", never)
        monkeypatch.setattr(RESOLVER, "_last", {})  # what other tests learned
        start = time.monotonic()
        assert not asyncio.run(selector.select_async("u0", K)).logged
        assert time.monotonic() - start < 1.0
        silent.set()
        time.sleep(0.2)
        assert asyncio.run(selector.select_async("u0", K)).logged


def test_a_missing_password_is_noticed_at_open(served: Served) -> None:
    with local_redis() as url:
        redis.Redis.from_url(url).config_set("requirepass", "pw")
        with pytest.raises(DependencyUnavailableError, match=r"(?i)auth"):
            Served(folder=served.folder, redis_url=url).open()
        redis.Redis.from_url(url, password="pw").config_set("requirepass", "")


def test_a_loop_that_is_blocked_does_not_open_the_breaker(served: Served) -> None:
    async def run() -> tuple[bool, list[bool]]:
        selector = served.open(deadline_ms=50.0)
        for user in REWARDED:
            await selector.select_async(user, K)
        under_way = [asyncio.create_task(selector.select_async(REWARDED[number % 3], K)) for number in range(16)]
        await asyncio.sleep(0)
        time.sleep(0.1)
        await asyncio.gather(*under_way)
        opened = selector.breaker.is_open
        after = [(await selector.select_async("u0", K)).logged for _ in range(5)]
        await selector.close_async()
        return opened, after

    assert asyncio.run(run()) == (False, [True] * 5)
