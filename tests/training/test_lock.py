"""The lease of a deployment: one owner at a time, none for ever, and none that goes on after it lost the lease."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from pathlib import Path

import pyarrow as pa
import pytest

from bandit.errors import LeaseLostError, LockHeldError, StorageError
from training import lock
from training.lock import leased, still_leased
from training.logs.tables import write_table

fork = multiprocessing.get_context("fork")
SECONDS = 1.5  # life of a lease here; the heart beats every 50 ms
HOLDER = """
import sys, time
from pathlib import Path
from training.lock import leased
with leased(Path(sys.argv[1]), "fold", seconds=float(sys.argv[2])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(folder: Path, seconds: float = SECONDS) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that runs a step."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(folder), str(seconds)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.kill()


def take(folder: Path, step: str = "join", seconds: float = SECONDS) -> int:
    """Get the lease as another process would: without what this one holds."""

    def taken() -> int:
        with leased(folder, step, seconds=seconds) as lease:
            return lease.number

    return Context().run(taken)


def written(folder: Path, **owner: object) -> Path:
    """The lease of an owner of whom there is only its file."""
    file = folder / "lease" / f"{1:012d}"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"step": "fold", "host": "elsewhere", "pid": 1, "since": "then", "boot": "another"} | owner))
    return file


def test_a_lease_is_held_and_given_back(tmp_path: Path) -> None:
    with leased(tmp_path, "fold") as first:
        first.check()
    assert take(tmp_path) == first.number + 1


def test_it_is_given_back_when_the_step_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), leased(tmp_path, "fold"):
        raise ZeroDivisionError
    assert take(tmp_path) == 2


def test_a_step_inside_a_step_shares_its_lease(tmp_path: Path) -> None:
    with leased(tmp_path, "retrain") as outer:
        with leased(tmp_path / "." / "", "fold") as inner:
            assert inner is outer
        outer.check()
        with leased(tmp_path / "other", "fold") as other:
            assert other is not outer


def test_every_other_step_is_refused_naming_the_owner_and_its_times(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        began = time.monotonic()
        with pytest.raises(LockHeldError) as raised, leased(tmp_path, "join", seconds=SECONDS):
            pass
        assert time.monotonic() - began < SECONDS
        error = raised.value
        assert (error.step, error.seconds) == ("fold", SECONDS)
        assert error.owner.startswith(f"process {process.pid} on ")
        assert all(part in str(error) for part in ("'fold'", str(process.pid), error.since, "2 s without a heartbeat"))


def test_a_thread_of_its_own_is_no_step_inside_a_step(tmp_path: Path) -> None:
    refused: list[LockHeldError] = []

    def other() -> None:
        try:
            with leased(tmp_path, "fold", seconds=SECONDS):
                pass
        except LockHeldError as error:
            refused.append(error)

    with leased(tmp_path, "retrain", seconds=SECONDS):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 1


def test_a_killed_owner_on_this_machine_is_replaced_at_once(tmp_path: Path) -> None:
    with holder(tmp_path, seconds=60.0) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        began = time.monotonic()
        assert take(tmp_path, seconds=60.0) == 2
        assert time.monotonic() - began < 1.0


@pytest.mark.parametrize(
    "owner",
    [
        {"host": "elsewhere", "pid": 7},
        {"host": "this", "pid": 1},
        {"host": "this", "pid": os.getpid()},
        {"host": "this", "pid": os.getpid(), "boot": ""},
    ],
)
def test_a_silent_owner_is_replaced_within_the_life_of_a_lease_whatever_its_name(tmp_path: Path, owner: dict[str, object]) -> None:
    written(tmp_path, **(owner | ({"host": os.uname().nodename} if owner["host"] == "this" else {})))
    began = time.monotonic()
    assert take(tmp_path, seconds=0.5) == 2
    assert 0.5 <= time.monotonic() - began < 5.0


@pytest.mark.parametrize("off", [-86_400.0, 86_400.0])
def test_clocks_that_are_off_by_a_day_decide_nothing(tmp_path: Path, off: float) -> None:
    file = written(tmp_path)
    os.utime(file, (time.time() + off, time.time() + off))
    assert take(tmp_path, seconds=0.3) == 2
    file = tmp_path / "lease" / f"{3:012d}"
    file.write_text((tmp_path / "lease" / f"{1:012d}").read_text())
    stop = threading.Event()

    def beats() -> None:  # of a machine whose clock is off, and stands nearly still
        moment = time.time_ns() + round(off * 1e9)
        while not stop.wait(0.05):
            moment += 1000
            os.utime(file, ns=(moment, moment))

    thread = threading.Thread(target=beats)
    thread.start()
    try:
        with pytest.raises(LockHeldError, match="elsewhere since then"):
            take(tmp_path)
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("content", ["", "fre", '{"step": "fo', "[]", "\x00"])
def test_an_owner_that_died_before_it_said_its_name_is_replaced_too(tmp_path: Path, content: str) -> None:
    written(tmp_path).write_text(content)
    assert take(tmp_path, seconds=0.3) == 2


def frozen(folder: Path, then: Callable[[], None]) -> str:
    """What an owner meets that is stopped for longer than its lease, while another takes over and ends: the error's name, or nothing."""
    said = fork.SimpleQueue()
    ready = fork.Event()

    def run() -> None:
        try:
            with leased(folder, "retrain", seconds=0.5):
                ready.set()
                os.kill(os.getpid(), signal.SIGSTOP)
                then()
            said.put("")
        except BaseException as error:
            said.put(type(error).__name__)
        os._exit(0)

    process = fork.Process(target=run)
    process.start()
    assert ready.wait(30)
    number = take(folder, seconds=0.5)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGCONT)
    process.join(30)
    assert take(folder, seconds=0.5) == number + 1
    return str(said.get())


def test_a_frozen_owner_that_wakes_writes_nothing_more(tmp_path: Path) -> None:
    table, file = pa.table({"a": [1]}), tmp_path / "out" / "a.parquet"
    assert frozen(tmp_path, still_leased) == LeaseLostError.__name__
    assert frozen(tmp_path, lambda: write_table(table, file)) == LeaseLostError.__name__
    assert not file.exists()


def test_a_lease_whose_file_somebody_removed_is_lost(tmp_path: Path) -> None:
    with leased(tmp_path, "fold") as lease:
        for file in (tmp_path / "lease").iterdir():
            file.unlink()
        with pytest.raises(LeaseLostError):
            lease.check()


def test_many_processes_at_once_never_own_it_together(tmp_path: Path) -> None:
    inside, together = fork.Value("i", 0), fork.Value("i", 0)
    got = fork.Value("i", 0)

    def work(number: int) -> None:
        while got.value < 40:
            try:
                with leased(tmp_path, f"step {number}", seconds=20.0):
                    with inside.get_lock():
                        inside.value += 1
                        together.value = max(together.value, inside.value)
                    with inside.get_lock():
                        got.value += 1
                        inside.value -= 1
            except LockHeldError:
                pass
        os._exit(0)

    processes = [fork.Process(target=work, args=(number,)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert together.value == 1
    assert len(list((tmp_path / "lease").iterdir())) <= lock._NUMBERS_KEPT + 2


def test_a_number_that_was_removed_since_one_looked_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(60):
        last = take(tmp_path)
    newest = iter([1, last, last, last + 1])  # a look that is far too old, as from a cached folder
    monkeypatch.setattr(lock, "_newest", lambda folder: next(newest))
    assert take(tmp_path) == last + 1


def test_a_folder_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "lease").write_text("")
    with pytest.raises(StorageError, match="the lease cannot be taken"), leased(tmp_path, "fold"):
        pass
