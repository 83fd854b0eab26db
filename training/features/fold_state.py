"""The sums that the last fold left, and what it had counted: the next fold reads only what came since.

Below `data/fold/`: the sums, the events and decisions of the intake window, and a manifest that names them with their digests. The manifest
is written last, after the snapshot of `cluster_rewards`: a fold that is killed leaves the state of the fold before it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import pyarrow as pa

from bandit.errors import FoldStateError
from bandit.model.linear_model import sha256
from bandit.settings.load import Settings
from feature_repo import names
from training.logs.files import below
from training.logs.lineage import Lineage, lineage_folder, read_lineage, timed_files
from training.logs.tables import parts_of, write_table
from training.logs.writing import write_whole

SUMS_TABLE, EVENTS_TABLE, DECISIONS_TABLE = "sums", "events", "decisions"
_MANIFEST = "state.json"
_FORMAT = 1
Marks = Mapping[str, tuple[int, int]]  # size and time of change (nanoseconds) of files, by path


class LogNews(NamedTuple):
    """Files of the logs, by path below the data folder: all, those that were counted, those to read, those to look at again."""

    marks: Marks
    counted: Collection[str]
    fresh: Collection[str]
    again: Collection[str]


class FoldState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a fold left.

    as_of: time of the sums; since: events and decisions from then on are in the state, by id. files, snapshots, lineage: what it counted,
    wrote and went through. again: files of the log with rows that were in the future. rows: of the logs. tables: digest of each file.
    users, clusters, events, full: the fold's result.
    """

    format: int = _FORMAT
    generation: int
    as_of: int
    since: int
    fingerprint: str
    files: dict[str, tuple[int, int]]
    snapshots: dict[str, tuple[int, int]]
    lineage: dict[str, tuple[int, int]]
    again: list[str]
    rows: dict[str, int]
    tables: dict[str, str]
    users: int
    clusters: int
    events: int
    full: str


def last_state(settings: Settings) -> FoldState:
    """The state on disk. Raises: FoldStateError when there is none, or none that can be believed."""
    file = _folder(settings) / _MANIFEST
    try:
        state = msgspec.json.decode(file.read_bytes(), type=FoldState)
    except FileNotFoundError as error:
        raise FoldStateError("no fold has left its sums yet") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, OSError) as error:
        raise FoldStateError(f"{file.name}: {error}") from error
    if state.format != _FORMAT:
        raise FoldStateError(f"{file.name} has the format {state.format}, expected {_FORMAT}")
    return state


def usable_state(settings: Settings, *, as_of: int) -> FoldState:
    """The last state, when the sums as of this time (UTC microseconds) follow from it and what came since. Raises: FoldStateError."""
    state = last_state(settings)
    if state.fingerprint != settings.reward.sums_definition().fingerprint:
        raise FoldStateError("weights, half-lives or sums have changed")
    if as_of < state.as_of:
        raise FoldStateError("it is as of a time before the last fold")
    for name, digest in state.tables.items():
        file = table_file(settings, state, name)
        if not file.is_file() or sha256(file.read_bytes()) != digest:
            raise FoldStateError(f"{file.name} is damaged or gone")
    there = snapshot_marks(settings)
    if lost := _lost(state.snapshots, there, settings.feature_repo_path / names.CLUSTER_REWARDS_PATH):
        raise FoldStateError(f"the snapshot {lost} is gone or another")
    if lineage_marks(settings, until=state.as_of) != state.lineage:
        raise FoldStateError("the lineage of before the last fold has changed")
    return state


def log_news(settings: Settings, state: FoldState | None) -> LogNews:
    """What of the logs a fold reads. Raises: FoldStateError when a file that was counted is gone or has changed."""
    there = _marks([*below(settings.data_path / "feedback"), *below(settings.data_path / "decisions")], settings.data_path)
    if state is None:
        return LogNews(there, set(), set(there), set())
    if lost := _lost(state.files, there, settings.data_path):
        raise FoldStateError(f"{lost} was counted, and is gone or another now")
    counted = {name for name, mark in there.items() if state.files.get(name) == mark}
    for name in there.keys() - counted:
        parts = parts_of(settings.data_path / name)
        if parts and all(state.files.get(str(Path(name).with_name(part))) == mark for part, mark in parts.items()):
            counted.add(name)
    return LogNews(there, counted, there.keys() - counted, counted.intersection(state.again))


def changes_since(settings: Settings, state: FoldState, as_of: int) -> Lineage:
    """Reclusterings since the last fold. Raises: FoldStateError for one that concerns what was folded before."""
    changes = read_lineage(settings, as_of, since=state.as_of)
    if any(change.effective_at <= state.as_of for history in changes.values() for change in history):
        raise FoldStateError("a clustering since the last fold concerns the time before it")
    return changes


def write_state(settings: Settings, state: FoldState, tables: Mapping[str, pa.Table]) -> None:
    """Write the tables, then the manifest that names them, and remove those of the generations before."""
    folder, digests = _folder(settings), {}
    for name, table in tables.items():
        file = table_file(settings, state, name)
        write_table(table, file)
        digests[name] = sha256(file.read_bytes())
    write_whole(folder / _MANIFEST, msgspec.json.encode(msgspec.structs.replace(state, tables=digests)))
    for old in set(folder.glob("*.parquet")) - {table_file(settings, state, name) for name in tables}:
        old.unlink()


def table_file(settings: Settings, state: FoldState, name: str) -> Path:
    """Where one of the state's tables is."""
    return _folder(settings) / f"{name}-{state.generation:08d}.parquet"


def snapshot_marks(settings: Settings) -> dict[str, tuple[int, int]]:
    """Every snapshot of `cluster_rewards`."""
    folder = settings.feature_repo_path / names.CLUSTER_REWARDS_PATH
    return _marks(below(folder), folder)


def lineage_marks(settings: Settings, *, until: int) -> dict[str, tuple[int, int]]:
    """The lineage log up to this time (UTC microseconds)."""
    folder = lineage_folder(settings)
    return _marks([file for moment, file in timed_files(folder).items() if moment <= until], folder)


def _folder(settings: Settings) -> Path:
    return settings.data_path / "fold"


def _marks(files: Sequence[Path], folder: Path) -> dict[str, tuple[int, int]]:
    marks = {}
    for file in files:
        with contextlib.suppress(FileNotFoundError):  # a link that leads nowhere
            status = file.stat()
            marks[str(file.relative_to(folder))] = status.st_size, status.st_mtime_ns
    return marks


def _lost(known: Marks, there: Marks, folder: Path) -> str:
    """A file that is not there as it was known, nor among the parts of one that joined several; empty when there is none."""
    missing = [name for name, mark in known.items() if there.get(name) != mark]
    if not missing:
        return ""
    joined: dict[str, tuple[int, int]] = {}
    for name, mark in there.items():
        if known.get(name) != mark:
            joined |= {str(Path(name).with_name(part)): part_mark for part, part_mark in parts_of(folder / name).items()}
    return next((name for name in missing if joined.get(name) != known[name]), "")
