"""A process that dies at a given step: just before a write to Redis, to MLflow's database or to the disk."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import redis
import sqlalchemy

from bandit.settings.load import Settings
from tests.tables_made import KEYS
from training.models.registry import ModelRegistry

fork = multiprocessing.get_context("fork")


def in_child(work: Callable[[], Any]) -> Any:
    """The result of `work` in a process of its own: a process must not fork with MLflow's connections open."""
    answers = fork.SimpleQueue()

    def run() -> None:
        try:
            answers.put((True, work()))
        except BaseException as error:
            answers.put((False, f"{type(error).__name__}: {error}"))
        os._exit(0)

    process = fork.Process(target=run)
    process.start()
    well, answer = answers.get()
    process.join()
    assert well, answer
    return answer


def killed_at(step: int, work: Callable[[], Any]) -> bool:
    """Whether `work` was killed; not when it has fewer steps than that."""

    def run() -> None:
        _deadly(step)
        work()
        os._exit(0)

    process = fork.Process(target=run)
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return process.exitcode != 0


def _deadly(step: int) -> None:
    steps = itertools.count()

    def die(*_: object) -> None:
        if next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            die()
            return call(*arguments, **options)

        return wrapped

    sqlalchemy.event.listen(sqlalchemy.engine.Engine, "commit", die)
    redis.Redis.execute_command = before(redis.Redis.execute_command)  # type: ignore[method-assign]
    redis.client.Pipeline.execute = before(redis.client.Pipeline.execute)  # type: ignore[method-assign]
    os.fsync, os.ftruncate = before(os.fsync), before(os.ftruncate)
    Path.replace, Path.unlink = before(Path.replace), before(Path.unlink)  # type: ignore[method-assign]


class Snapshot:
    """A deployment as it was, to be put back."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder, self._client = folder, redis.Redis.from_url(url)
        self._copy = folder.with_name(folder.name + ".snapshot")
        shutil.copytree(folder, self._copy)
        self._keys = {key: self._client.dump(key) for key in self._client.scan_iter()}

    def back(self) -> None:
        shutil.rmtree(self._folder)
        shutil.copytree(self._copy, self._folder)
        self._client.flushdb()
        for key, value in self._keys.items():
            self._client.restore(key, 0, value)


def truth(settings: Settings) -> dict[str, object]:
    """What both stores say of models, and what lies around."""
    client = redis.Redis.from_url(settings.redis_url)
    pointer = client.get(KEYS.champion)
    served = msgspec.msgpack.decode(pointer) if pointer else {}
    registry = ModelRegistry(settings)
    versions = registry._client.search_model_versions("name='query-rewards'")
    experiment = registry._client.get_experiment_by_name("query-rewards")
    runs = registry._client.search_runs([experiment.experiment_id]) if experiment else []
    models = {key.decode(): client.ttl(key) == -1 for key in client.scan_iter(KEYS.model("*")) if key != KEYS.champion.encode()}
    folder = settings.data_path
    return {
        "served": served,
        "champion": registry.champion(),
        "versions": sorted((version.version, sorted(version.tags.items())) for version in versions),
        "runs": sorted(run.info.status for run in runs),
        "files": len(list(folder.rglob("model.msgpack"))),
        "models in Redis": models,
        "left": [
            file.name for file in folder.rglob("*") if ".partial" in file.name or file.name in ("promotion.json", "candidate.msgpack")
        ],
    }


def kill_everywhere(deployment: Path, settings: Settings, work: Callable[[], Any], *, every: int = 1, first: int = 0) -> int:
    """Kill `work` at every step, run it once more, and hold both stores against a run without a kill; returns the number of kills."""
    snapshot = Snapshot(deployment, settings.redis_url)
    in_child(work)
    wanted = in_child(lambda: truth(settings))
    for step in itertools.count(first, every):
        snapshot.back()
        if not killed_at(step, work):
            return (step - first) // every
        if in_child(lambda: truth(settings)) | {"left": []} != wanted:  # else it was done but for its own tidying
            in_child(work)
        found = in_child(lambda: truth(settings))
        if found["left"] == ["promotion.json"] or found["left"] == ["candidate.msgpack"]:
            in_child(lambda: _next_run(settings))
            found = in_child(lambda: truth(settings))
        assert found == wanted, f"killed at step {step}"
    raise AssertionError


def _next_run(settings: Settings) -> None:
    from training.models.promote import repair  # noqa: PLC0415

    repair(settings)
    ModelRegistry(settings).add_kept()
