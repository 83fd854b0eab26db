"""One step at a time in a deployment: a lease in the data folder, with a heartbeat and a number that only grows.

Each lease is a file `lease/NUMBER`, created exclusively, so that one process gets each number. The highest number owns the folder. No clock
is compared: a process that wants the lease watches the owner's heartbeat, the file's time, for `seconds` of its own monotonic clock. On the
owner's machine it need not wait: the kernel frees the owner's flock with its death. See docs/decisions/0010-one-lease-one-truth.md.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from bandit.errors import LeaseLostError, LockHeldError, StorageError

_SECONDS = 30.0  # without a heartbeat, and the lease is another's to take
_BEATS = 30  # within that time
_LOOKS = 150  # at the owner's heartbeat, within that time
_NUMBERS_KEPT = 50  # files of former leases: a process that slept between looking and creating must not get a former number
_FREE = b"free"
_BOOT = Path("/proc/sys/kernel/random/boot_id")

log = logging.getLogger(__name__)


class _Owner(msgspec.Struct, frozen=True, kw_only=True):
    """Whose lease it is. `boot`: of the machine, where flock works; empty, and only the heartbeat says whether the owner is alive."""

    step: str
    host: str
    pid: int
    since: str
    boot: str


class Lease:
    """The right to write, until another process has a higher number."""

    def __init__(self, folder: Path, number: int, step: str, descriptor: int) -> None:
        self.folder, self.number, self.step = folder, number, step
        self._descriptor = descriptor
        self.token = uuid.uuid4().hex
        self.claims: dict[str, bytes] = {}  # of each Redis, by URL (training/claim.py)

    def check(self) -> None:
        """To be asked before each commit: an owner that was frozen for longer than its lease must write nothing more.

        Raises: LeaseLostError.
        """
        try:
            same = os.path.samestat(os.fstat(self._descriptor), _file(self.folder, self.number).stat())
        except FileNotFoundError:
            same = False
        if not same or _newest(self.folder) != self.number:
            raise LeaseLostError(self.step)


_current: ContextVar[Lease | None] = ContextVar("lease", default=None)


@contextlib.contextmanager
def leased(data: Path, step: str, *, seconds: float = _SECONDS) -> Iterator[Lease]:
    """Own the deployment of this data folder while `step` runs. A step inside a step shares its lease.

    Args:
        data: the data folder.
        step: for the message that others get.
        seconds: life of a lease without a heartbeat; the same for all processes.

    Raises: LockHeldError naming the owner, StorageError for a folder that cannot be written.
    """
    folder = data.resolve() / "lease"
    outer = _current.get()
    if outer is not None and outer.folder == folder:
        outer.check()
        yield outer
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, number = _take(folder, step, seconds)
    except OSError as error:
        if isinstance(error, LockHeldError):
            raise
        raise StorageError(str(data), f"the lease cannot be taken: {error.strerror or error}") from error
    lease, stop = Lease(folder, number, step, descriptor), threading.Event()
    beats = threading.Thread(target=_beat, args=(descriptor, stop, seconds / _BEATS), name="query-rewards-lease", daemon=True)
    beats.start()
    token = _current.set(lease)
    try:
        yield lease
    finally:
        _current.reset(token)
        stop.set()
        beats.join()
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)  # empty says nothing, so that a look between the two waits for the second
            os.pwrite(descriptor, _FREE, 0)
        os.close(descriptor)


def still_leased() -> None:
    """For whatever commits without being handed the lease, such as the writer of files. Without a lease there is nothing to lose.

    Raises: LeaseLostError.
    """
    lease = _current.get()
    if lease is not None:
        lease.check()


def _take(folder: Path, step: str, seconds: float) -> tuple[int, int]:
    while True:
        number = _newest(folder) + 1
        if number > 1:
            _wait_for(_file(folder, number - 1), seconds)
        try:
            descriptor = os.open(_file(folder, number), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            continue  # another process was quicker
        boot = _boot() if _flock(descriptor, fcntl.LOCK_EX) else ""
        since = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            os.write(descriptor, msgspec.json.encode(_Owner(step=step, host=socket.gethostname(), pid=os.getpid(), since=since, boot=boot)))
        except OSError:  # a full disk
            os.close(descriptor)
            _file(folder, number).unlink()
            raise
        if _newest(folder) != number:  # a former number, that was removed since we looked
            os.close(descriptor)
            continue
        for old in _numbers(folder):
            if old < number - _NUMBERS_KEPT:
                _file(folder, old).unlink(missing_ok=True)
        return descriptor, number


def _wait_for(file: Path, seconds: float) -> None:
    """Return when the lease is free or its owner is dead. Raises: LockHeldError at the first heartbeat."""
    began, first, said = time.monotonic(), None, False
    while True:
        try:
            with file.open("rb") as opened:  # opened each time: NFS then asks its server
                content, beat = opened.read(), os.fstat(opened.fileno()).st_mtime_ns
                owner = _owner(content)
                if content == _FREE or (owner.boot and owner.boot == _boot() and _flock(opened.fileno(), fcntl.LOCK_SH)):
                    return
        except FileNotFoundError:
            return  # of a former number by now
        first = beat if first is None else first
        if beat != first:
            raise LockHeldError(owner.step, f"process {owner.pid} on {owner.host}", since=owner.since, seconds=seconds)
        waited = time.monotonic() - began
        if waited >= seconds:
            return
        if not said and waited > seconds / 5:
            log.warning("process %d on %s gives no sign of life: its lease ends in %.0f s", owner.pid, owner.host, seconds - waited)
            said = True
        time.sleep(seconds / _LOOKS)


def _beat(descriptor: int, stop: threading.Event, every: float) -> None:
    while not stop.wait(every):
        with contextlib.suppress(OSError):  # a folder that is gone for longer than the lease is noticed by `check`
            os.utime(descriptor)


def _owner(content: bytes) -> _Owner:
    try:
        return msgspec.json.decode(content, type=_Owner)
    except msgspec.MsgspecError:  # just created, or just freed
        return _Owner(step="a step", host="a machine that did not say", pid=0, since="a moment ago", boot="")


def _flock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError:  # locked, or a file system without locks
        return False
    return True


def _boot() -> str:
    return _BOOT.read_text(encoding="ascii").strip() if _BOOT.exists() else ""


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:012d}"


def _numbers(folder: Path) -> list[int]:
    return [int(file.name) for file in folder.iterdir() if file.name.isdigit()]


def _newest(folder: Path) -> int:
    try:
        return max(_numbers(folder), default=0)
    except FileNotFoundError:
        return 0
