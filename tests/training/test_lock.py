"""The lock of a step: one owner at a time, and none for ever."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bandit.errors import LockHeldError
from training import lock
from training.lock import locked

HOLDER = """
import sys, time
from pathlib import Path
from training.lock import locked
with locked(Path(sys.argv[1]), "fold"):
    print("held", flush=True)
    time.sleep(60)
"""


def written(folder: Path, **owner: object) -> Path:
    """The lock file of another owner: this host's process 1, for another minute, unless the fields say otherwise."""
    file = folder / "locks" / "fold.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"host": socket.gethostname(), "pid": 1, "expires_at": time.time() + 60.0} | owner))
    return file


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_lock_is_held_and_given_back(tmp_path: Path) -> None:
    file = tmp_path / "locks" / "fold.json"
    with locked(tmp_path, "fold"):
        owner = json.loads(file.read_text())
        assert (owner["host"], owner["pid"]) == (socket.gethostname(), os.getpid())
        assert 0.0 < owner["expires_at"] - time.time() <= 6 * 3600.0
    assert not file.exists()
    with locked(tmp_path, "fold"):
        pass


def test_it_is_given_back_when_the_step_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path, "fold"):
        raise ZeroDivisionError
    assert not (tmp_path / "locks" / "fold.json").exists()


def test_a_second_run_is_refused_naming_the_owner_and_the_first_keeps_it(tmp_path: Path) -> None:
    with locked(tmp_path, "fold"):
        with pytest.raises(LockHeldError, match="step 'fold' is locked by") as raised, locked(tmp_path, "fold"):
            pass
        assert raised.value.owner == f"process {os.getpid()} on {socket.gethostname()}"
        assert (tmp_path / "locks" / "fold.json").exists()


def test_steps_and_folders_do_not_lock_each_other(tmp_path: Path) -> None:
    with locked(tmp_path, "fold"), locked(tmp_path, "join"), locked(tmp_path / "other", "fold"):
        assert len(list((tmp_path / "locks").iterdir())) == 2


def test_another_process_holds_it_until_it_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LockHeldError, match=f"process {holder.pid} on"), locked(tmp_path, "fold"):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with locked(tmp_path, "fold"):
            assert json.loads((tmp_path / "locks" / "fold.json").read_text())["pid"] == os.getpid()


def test_a_lock_of_another_machine_holds_until_it_expires(tmp_path: Path) -> None:
    written(tmp_path, host="elsewhere", pid=dead_process())
    with pytest.raises(LockHeldError, match="on elsewhere"), locked(tmp_path, "fold"):
        pass
    written(tmp_path, host="elsewhere", expires_at=time.time() - 1.0)
    with locked(tmp_path, "fold"):
        pass


def test_an_expired_lock_of_a_running_process_is_taken_over(tmp_path: Path) -> None:
    written(tmp_path, pid=os.getpid(), expires_at=time.time() - 1.0)
    with locked(tmp_path, "fold"):
        pass


def test_a_lock_file_that_was_never_written_is_taken_over(tmp_path: Path) -> None:
    written(tmp_path).write_text("")
    with locked(tmp_path, "fold"):
        pass


def test_a_lock_file_that_was_cut_short_is_taken_over(tmp_path: Path) -> None:
    file = written(tmp_path)
    file.write_text(file.read_text()[:20])

    def too_long(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with locked(tmp_path, "fold"):
            pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def test_two_that_find_a_dead_owner_do_not_both_get_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, pid=dead_process())

    looks: list[int] = []

    def another_is_quicker(pid: int) -> bool:
        looks.append(pid)
        if len(looks) == 1:
            written(tmp_path)  # between our look at the dead owner and our removal of its file
        return len(looks) > 1

    monkeypatch.setattr(lock, "_alive", another_is_quicker)
    with pytest.raises(LockHeldError), locked(tmp_path, "fold"):
        pass


def test_an_owner_whose_lock_was_taken_over_does_not_free_it(tmp_path: Path) -> None:
    with locked(tmp_path, "fold"):
        file = written(tmp_path, host="elsewhere")
    assert file.exists()
