"""One run of a step at a time: a lock file with an owner and an expiry."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
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
    owner = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "expires_at": time.time() + _EXPIRY_SECONDS})
    while not _linked(owner, file):
        _take_away_if_stale(file, step)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            if file.read_text(encoding="utf-8") == owner:  # an expired lock may be another's by now
                file.unlink()


def _linked(owner: str, file: Path) -> bool:
    """Whether the lock is ours now: a file that is whole before it has the lock's name, and gets that name only if it is free."""
    draft = _beside(file)
    draft.write_text(owner, encoding="utf-8")
    try:
        os.link(draft, file)
    except FileExistsError:
        return False
    finally:
        draft.unlink()
    return True


def _take_away_if_stale(file: Path, step: str) -> None:
    try:
        seen = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    with contextlib.suppress(ValueError, KeyError, TypeError):  # a lock that cannot be read is nobody's
        held = json.loads(seen)
        dead = held["host"] == socket.gethostname() and not _alive(held["pid"])
        if held["expires_at"] > time.time() and not dead:
            raise LockHeldError(step, f"process {held['pid']} on {held['host']}")
    removed = _beside(file)
    with contextlib.suppress(FileNotFoundError):
        file.rename(removed)
        if removed.read_text(encoding="utf-8") != seen:  # somebody was quicker, and this is their lock: give it back
            with contextlib.suppress(FileExistsError):
                os.link(removed, file)
        removed.unlink()


def _beside(file: Path) -> Path:
    return file.with_name(f".{file.name}.{uuid.uuid4().hex}")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
