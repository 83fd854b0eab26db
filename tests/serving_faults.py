"""Ways to break a Redis in the middle of requests, and a world of its own to do it in."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import redis

from tests.served_world import Served, make
from tests.slow_proxy import SlowProxy
from training.local_redis import URL_VARIABLE, local_redis


@contextmanager
def own_world(folder: Path) -> Iterator[Served]:
    """A world whose Redis may be broken."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(URL_VARIABLE, raising=False)
        with local_redis(options=("--appendonly", "no")) as url:
            yield make(folder / "deployment", url)


@contextmanager
def frozen(world: Served, proxy: SlowProxy) -> Iterator[None]:
    with redis.Redis.from_url(world.redis_url) as client:
        process = client.info("server")["process_id"]
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


@contextmanager
def slow(world: Served, proxy: SlowProxy) -> Iterator[None]:
    proxy.delay = 0.2
    try:
        yield
    finally:
        proxy.delay = 0.0


@contextmanager
def cut(world: Served, proxy: SlowProxy) -> Iterator[None]:
    """Every connection is broken, as by a kill; new ones too, while it lasts."""
    client = redis.Redis.from_url(world.redis_url)
    stop = threading.Event()

    def kill() -> None:
        while not stop.is_set():
            client.client_kill_filter(_type="normal", skipme=True)
            time.sleep(0.002)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        client.close()


FAULTS: dict[str, Callable[[Served, SlowProxy], AbstractContextManager[None]]] = {"frozen": frozen, "slow": slow, "cut": cut}
