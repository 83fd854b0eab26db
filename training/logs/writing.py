"""The one writer of files: a name of its own, to disk, then the name that readers know. Whole or not at all, also when the power goes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa

from bandit.errors import StorageError
from training.lock import still_leased

PARTIAL = ".partial"
_ABANDONED_SECONDS = 24 * 3600  # a leftover of another machine's process, of which nobody knows whether it lives


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """A name to write to, which becomes `file` when the block ends well, and goes when it does not.

    Raises: StorageError when the disk is full, the folder read-only, and the like; LeaseLostError.
    """
    partial = file.with_name(f".{file.name}.{os.getpid()}{PARTIAL}")
    with storage_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(file)
        try:
            yield partial
            _to_disk(partial)
            still_leased()
            partial.replace(file)
            _to_disk(file.parent)
        except BaseException:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


def write_whole(file: Path, data: bytes) -> None:
    """Write these bytes. Raises: StorageError."""
    with whole_file(file) as partial:
        partial.write_bytes(data)


def remove_leftovers(file: Path) -> None:
    """Remove what killed runs left of this file: the partial files of processes that are gone, and those of a day ago."""
    for left in file.parent.iterdir():
        if not (left.name.startswith(f".{file.name}.") and left.name.endswith(PARTIAL)):
            continue
        number = left.name.removeprefix(f".{file.name}.").removesuffix(PARTIAL)
        with suppress(FileNotFoundError):
            if not number.isdigit() or not _runs(int(number)) or left.stat().st_mtime < time.time() - _ABANDONED_SECONDS:
                left.unlink()


@contextmanager
def storage_errors(file: Path | str) -> Iterator[None]:
    """What the system and Arrow say about a file, as one line that names it. Raises: StorageError."""
    try:
        yield
    except StorageError:
        raise
    except pa.ArrowException as error:
        raise StorageError(str(file), str(error).strip().splitlines()[0]) from error
    except OSError as error:
        if type(error).__module__ != "builtins":  # one of ours, which says it better
            raise
        raise StorageError(str(error.filename or file), error.strerror or str(error).strip().splitlines()[0]) from error


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _runs(process: int) -> bool:
    if process == os.getpid():
        return False  # this process writes one file of a name at a time
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
