"""One run of a step at a time: a lock file with an owner and an expiry."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from bandit.errors import LockHeldError

_EXPIRY_SECONDS = 6 * 3600.0


@contextlib.contextmanager
def locked(folder: Path, step: str) -> Iterator[None]:
    """Hold the lock of `step` in this data folder.

    A lock whose owner died on this machine, or that is older than six hours, is taken over.

    Raises: LockHeldError naming the owner.
    """
    file = folder / "locks" / f"{step}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "expires_at": time.time() + _EXPIRY_SECONDS}
    while True:
        try:
            with file.open("x", encoding="utf-8") as out:
                json.dump(owner, out)
            break
        except FileExistsError:
            _remove_if_stale(file, step)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def _remove_if_stale(file: Path, step: str) -> None:
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):  # freed just now, or not written whole yet
        time.sleep(0.05)
        if file.exists() and not file.stat().st_size:
            file.unlink(missing_ok=True)
        return
    if held["expires_at"] > time.time() and not (held["host"] == socket.gethostname() and not _alive(held["pid"])):
        raise LockHeldError(step, f"process {held['pid']} on {held['host']}")
    file.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
