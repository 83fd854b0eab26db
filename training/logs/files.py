"""Files that others wrote: which ones a path names, and where damaged ones go."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from bandit.errors import InvalidTableError
from bandit.rewards.feedback import FUTURE_TOLERANCE
from bandit.settings.load import Settings
from bandit.settings.paths import local_path
from training.logs.writing import write_whole

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


def parquet_files(path: str | Path) -> list[Path]:
    """The file, or every Parquet file below the folder, in order of path: links are followed, names with `_` or `.` in front left out.

    Names are taken as they are: no pattern, no column from a folder's name. A folder may be called `x.parquet`, as Spark does.

    Raises: InvalidTableError when there is nothing to read.
    """
    try:
        root = local_path(path)
    except ValueError as error:
        raise InvalidTableError(str(path), str(error)) from error
    if root.is_file():
        return [root]
    if not root.exists():
        raise InvalidTableError(str(path), "no such file or folder")
    files = below(root)
    if not files:
        raise InvalidTableError(str(path), "a folder without Parquet files, expected names that end in .parquet")
    return files


def below(folder: Path) -> list[Path]:
    """The Parquet files below a folder, as `parquet_files` lists them; none when it does not exist. A link that leads nowhere is listed."""
    return sorted(_walk(folder, frozenset())) if folder.is_dir() else []


def _walk(folder: Path, above: frozenset[Path]) -> list[Path]:
    real = folder.resolve()
    if real in above:  # a link to a folder that it lies in
        return []
    files: list[Path] = []
    for entry in folder.iterdir():
        if entry.name.startswith(("_", ".")):
            continue
        if entry.is_dir():
            files += _walk(entry, above | {real})
        elif entry.name.endswith(".parquet"):
            files.append(entry)
    return files


def arrived_since(folder: Path, moment: int) -> Callable[[Path], bool]:
    """Whether a file of a log may hold what happened at this time (UTC microseconds) or later: not in a day of arrival before it.

    Nothing arrives before it happens, by more than clocks differ. A file that lies in no day folder may hold anything.
    """
    first = datetime.fromtimestamp(max(moment - FUTURE_TOLERANCE, 0) / 1e6, UTC).date().isoformat()

    def may_hold(file: Path) -> bool:
        day = file.relative_to(folder).parts[0]
        return not (_DAY.fullmatch(day) and day < first)

    return may_hold


def engine_path(file: Path) -> str:
    """A name as DuckDB must be told it: there `*`, `?` and `[` are patterns, unless they stand in brackets."""
    return re.sub(r"([\[*?])", r"[\1]", str(file))


def quarantine(settings: Settings, file: Path, reason: str) -> dict[str, str]:
    """Move a file that does not belong to the logs to `data/quarantine`, and write the reason next to it. Returns both, by its old name."""
    folder = settings.data_path / "quarantine" / file.parent.name
    folder.mkdir(parents=True, exist_ok=True)
    number, target = 0, folder / file.name
    while os.path.lexists(target):
        number += 1
        target = folder / f"{number}-{file.name}"
    file.rename(target)
    write_whole(target.with_name(f"{target.name}.reason.txt"), f"{file}: {reason}\n".encode())
    return {str(file): reason}
