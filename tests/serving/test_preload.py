"""gunicorn --preload: workers that are forked from a parent with a warm selector."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.ports import free_port
from tests.served_world import REWARDED, Served, hand_over
from tests.strategies import random_model

WORKERS, REQUESTS = 3, 300
APPLICATION = """
import json, os
from serving import QuerySelector

selector = QuerySelector.open({settings!r})
assert selector.select("u0", 5).logged  # the parent has a connection

def application(environ, start_response):
    chosen = selector.select(environ["PATH_INFO"][1:], 5)
    start_response("200 OK", [("Content-Type", "application/json")])
    items = [query.item_id for query in chosen.queries]
    answer = dict(items=items, logged=chosen.logged, version=chosen.model_version, worker=os.getpid())
    return [json.dumps(answer).encode()]
"""


@contextmanager
def preloaded(served: Served, folder: Path) -> Iterator[int]:
    settings = served.settings_file("bandit", deadline_ms=5000.0, model_poll_seconds=0.05)
    (folder / "preloaded.py").write_text(APPLICATION.format(settings=str(settings)))
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "gunicorn",
        "--preload",
        "--workers",
        str(WORKERS),
        "--bind",
        f"127.0.0.1:{port}",
        "--no-control-socket",
    ]
    environment_path = str(Path.cwd())
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--pythonpath", f"{folder},{environment_path}", "preloaded:application"], stderr=log)
    try:
        deadline = time.monotonic() + 60.0
        while (folder / "log").read_text().count("Booting worker") < WORKERS:
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(30.0)


def test_workers_that_gunicorn_forks_from_a_warm_parent_mix_no_answers_and_take_new_models(served: Served, tmp_path: Path) -> None:
    with preloaded(served, tmp_path) as port, ThreadPoolExecutor(6) as pool:

        def ask(number: int) -> tuple[str, Any]:
            user = REWARDED[number % len(REWARDED)]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{user}", timeout=30.0) as answer:
                return user, json.load(answer)

        answers = list(pool.map(ask, range(REQUESTS)))
        assert not [user for user, answer in answers if any(not item.startswith(f"{user}-") for item in answer["items"])]
        assert all(answer["logged"] and answer["items"] for _, answer in answers)
        assert len({answer["worker"] for _, answer in answers}) == WORKERS

        hand_over(served.redis, "7", random_model(1))
        time.sleep(2.0)
        later = [answer for _, answer in pool.map(ask, range(60))]
        assert {answer["version"] for answer in later} == {"7"}
        assert len({answer["worker"] for answer in later}) == WORKERS
