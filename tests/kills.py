"""A process that dies just before one of its writes: to Redis, to MLflow's database, to the disk. Counted, so that none is left out.

Each process is forked from a server that has imported everything, because importing takes seconds, and has run nothing: threads and
connections of MLflow, Arrow and DuckDB do not survive a fork.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import redis
import sqlalchemy

from bandit.model.linear_model import sha256
from bandit.settings.load import Settings
from tests.tables_made import KEYS
from training.models.registry import CHAMPION, ModelRegistry

EVERY = int(os.environ.get("KILL_EVERY", "0"))  # 1: at each write; 0: at a few, as many as the test says
_PATIENCE = 150.0  # seconds for a process of a busy machine; longer, and it hangs
_CHANGES = ("INSERT", "UPDATE", "DELETE", "CREATE", "ALTER", "DROP")
_READS = {"GET", "HGETALL", "HMGET", "HGET", "SCAN", "XRANGE", "XREAD", "INFO", "PING", "EXISTS", "TTL", "XINFO STREAM", "XLEN", "TYPE"}
_OWN = {"lease", "deployment.json", ".migrating", "mlflow.db", "registry.db", "registered.json"}  # new in each run, or asked by name
server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["tests.kills", "training.retrain"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A process that does some work, and its answer."""

    process: BaseProcess
    answers: Connection

    def finish(self) -> tuple[Any, list[str]] | None:
        """Its result and its writes, None when it was killed."""
        assert self.answers.poll(_PATIENCE), f"process {self.process.pid} hangs"
        try:
            well, answer, seen = self.answers.recv()
        except EOFError:
            self.process.join()
            assert self.process.exitcode == -signal.SIGKILL, self.process.exitcode
            return None
        self.process.join()
        assert well, answer
        return answer, seen


def start(work: Callable[[], Any], writes: Writes | None = None) -> Child:
    """Run `work` in a process of its own; what it is made of must survive pickling."""
    answers, sent = server.Pipe(duplex=False)
    process = server.Process(target=_run, args=(sent, work, writes))
    process.start()
    sent.close()
    return Child(process=process, answers=answers)


def in_child(work: Callable[[], Any]) -> Any:
    """The result of `work`, from a process of its own."""
    finished = start(work).finish()
    assert finished is not None
    return finished[0]


def _run(sent: Connection, work: Callable[[], Any], writes: Writes | None) -> None:
    if writes is not None:
        writes.watch()
    seen = writes.seen if writes is not None else []
    try:
        sent.send((True, work(), seen))
    except BaseException as error:
        sent.send((False, f"{type(error).__name__}: {error}", seen))


@dataclass(frozen=True, slots=True, kw_only=True)
class Writes:
    """The writes of a process by name. Before the `number`-th, from 0, of those called `name` (empty: of all), it sends itself a signal."""

    folder: Path
    name: str = ""
    number: int = -1
    sent: int = signal.SIGKILL
    seen: list[str] = field(default_factory=list)

    def watch(self) -> None:
        """For the life of this process."""
        changed: set[int] = set()

        def cursor(connection: Any, _: Any, statement: str, *more: Any) -> None:
            if statement.lstrip().upper().startswith(_CHANGES):
                changed.add(id(connection))

        def commit(connection: Any) -> None:
            if id(connection) in changed:
                changed.discard(id(connection))
                self._next("commit")

        sqlalchemy.event.listen(sqlalchemy.engine.Engine, "before_cursor_execute", cursor)
        sqlalchemy.event.listen(sqlalchemy.engine.Engine, "commit", commit)
        execute, send = redis.Redis.execute_command, redis.client.Pipeline.execute

        def command(client: Any, *arguments: Any, **options: Any) -> Any:
            if arguments[0] not in _READS and not isinstance(client, redis.client.Pipeline):
                self._next(str(arguments[0]))
            return execute(client, *arguments, **options)

        def pipeline(client: Any, *arguments: Any, **options: Any) -> Any:
            if any(words[0] not in _READS for words, _ in client.command_stack):
                self._next("pipeline")
            return send(client, *arguments, **options)

        redis.Redis.execute_command, redis.client.Pipeline.execute = command, pipeline  # type: ignore[method-assign]
        for name in ("fsync", "replace", "unlink", "ftruncate"):
            setattr(os, name, self._before(name, getattr(os, name)))

    def _before(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(target: Any, *arguments: Any, **options: Any) -> Any:
            if isinstance(target, int) or str(target).startswith(str(self.folder)):
                self._next(name)
            return call(target, *arguments, **options)

        return wrapped

    def _next(self, name: str) -> None:
        if self.name in ("", name) and self.number == (self.seen.count(name) if self.name else len(self.seen)):
            os.kill(os.getpid(), self.sent)
        self.seen.append(name)


def writes_of(folder: Path, work: Callable[[], Any]) -> list[str]:
    """The writes of `work`, which goes through."""
    finished = start(work, Writes(folder=folder)).finish()
    assert finished is not None
    return finished[1]


def killed_at(folder: Path, step: int, work: Callable[[], Any]) -> bool:
    """Whether `work` was killed before the write of that number."""
    return start(work, Writes(folder=folder, number=step)).finish() is None


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


def state(settings: Settings, folder: Path) -> dict[str, object]:
    """All that a deployment holds, but for names and times that are others in each run."""
    client = redis.Redis.from_url(settings.redis_url)
    read = {b"string": client.get, b"hash": client.hgetall, b"stream": client.xrange, b"set": client.smembers}
    own = {KEYS.deployment.encode()}
    registry = ModelRegistry(settings)
    versions = registry._client.search_model_versions(f"name='{settings.mlflow.model}'")
    experiment = registry._client.get_experiment_by_name(settings.mlflow.experiment)
    runs = registry._client.search_runs([experiment.experiment_id]) if experiment else []
    called = {version.run_id: f"run of {version.version}" for version in versions}
    files = {}
    for file in folder.rglob("*"):
        parts = [called.get(part, part) for part in file.relative_to(folder).parts]
        if file.is_file() and not set(parts) & _OWN:
            files["/".join(parts)] = sha256(file.read_bytes())
    return {
        "redis": {key: (read[client.type(key)](key), client.ttl(key) == -1) for key in client.scan_iter() if key not in own},
        "champion": registry.champion(),
        "aliases": registry._client.get_registered_model(settings.mlflow.model).aliases.keys() <= {CHAMPION},
        "versions": sorted((version.version, sorted(version.tags.items())) for version in versions),
        "runs": sorted((called.get(run.info.run_id, ""), run.info.status, sorted(run.data.metrics.items())) for run in runs),
        "files": files,
    }


def steps(count: int, few: int) -> list[int]:
    """The writes to be killed at: each `KILL_EVERY`-th, or a few that include the first and the last."""
    return list(range(0, count, EVERY)) if EVERY else sorted({round(number * (count - 1) / (few - 1)) for number in range(few)})


def kill_everywhere(folder: Path, settings: Settings, work: Callable[[], Any], *, few: int, again: bool = True) -> int:
    """Kill `work` at its writes, run it once more, and hold all that is there against a run without a kill; returns the number of kills.

    Args:
        folder: of the deployment.
        settings: of the deployment.
        work: what is killed.
        few: kills when KILL_EVERY says nothing.
        again: whether `work` may be run when it was killed after its last write that anybody sees, as an operator would who cannot know;
            a second rollback would go a step further.
    """
    snapshot = Snapshot(folder, settings.redis_url)
    names = writes_of(folder, work)
    wanted = in_child(partial(state, settings, folder))
    for step in steps(len(names), few):
        snapshot.back()
        assert killed_at(folder, step, work), f"not killed before {names[step]} ({step})"
        left = in_child(partial(_next_run, settings, folder, work, None if again else wanted))
        different = {key: (left[key], value) for key, value in wanted.items() if left[key] != value}
        assert not different, f"killed before {names[step]}, write {step} of {names}: {different}"
    return len(steps(len(names), few))


def _next_run(settings: Settings, folder: Path, work: Callable[[], Any], enough: dict[str, object] | None) -> dict[str, object]:
    if state(settings, folder) != enough:
        work()
    return state(settings, folder)
