"""Members: which items were in which cluster at the last clustering, so that the next one can inherit from it.

One file for each clustering, named by its time. A clustering counts once its lineage file is on disk: a members file without one is what a
crash left behind, and is not inherited from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bandit.errors import InvalidValueError
from bandit.lineage import Reclustering, recluster
from bandit.settings import Settings
from bandit.types import Ints
from training.lineage import lineage_folder, read_lineage, timed_file, timed_files
from training.pinnersage import UserClusters
from training.tables import MEMBERS, write_table

Clusters = dict[str, list[str]]


def last_clustering(settings: Settings, *, as_of: int) -> int | None:
    """Time of the clustering to inherit from when clustering as of this time: the last one before it.

    Raises: InvalidValueError when a later clustering has already been made: it inherited from what would be replaced.
    """
    counting = timed_files(lineage_folder(settings))
    if counting and max(counting) > as_of:
        raise InvalidValueError("as_of", expected=f"no time before the last clustering's ({counting[max(counting)]})", received=as_of)
    return max((moment for moment in timed_files(_folder(settings)) if moment in counting and moment != as_of), default=None)


def inherit(
    settings: Settings, users: Sequence[UserClusters], item_ids: pa.Array, *, last: int | None, as_of: int, effective_at: int
) -> tuple[list[list[str]], list[Reclustering]]:
    """Ids of every user's new clusters (also those left out), and what changed since the clustering as of `last`.

    Writes the members of the new clusters, which count once the lineage file of `as_of` is there. A user who is not among `users` keeps
    the members of the last time.

    Raises: InvalidValueError when `effective_at` is not after the last reclustering's.
    """
    old = _read(timed_file(_folder(settings), last)) if last is not None else {}
    history = read_lineage(settings, as_of - 1)
    latest = max((changes[-1].effective_at for changes in history.values()), default=-1)
    if effective_at <= latest:
        raise InvalidValueError("effective_at", expected=f"a time after the last reclustering's, {latest}", received=effective_at)
    fresh = _strings(item_ids, [np.append(user.medoids, user.left_out) for user in users])
    members = iter(_strings(item_ids, [items for user in users for items in user.members]))
    ids: list[list[str]] = []
    changes: list[Reclustering] = []
    for user, fresh_ids in zip(users, fresh, strict=True):
        new = list(islice(members, len(fresh_ids)))
        earlier = {
            name for change in history.get(user.user_id, ()) for move in change.moves for name in (move.from_cluster, move.to_cluster)
        }
        named, change = recluster(user.user_id, old.get(user.user_id, {}), new, fresh_ids, effective_at, taken=earlier)
        old[user.user_id] = dict(zip(named, new, strict=True))
        ids.append(named)
        changes += [change] if change else []
    _write(timed_file(_folder(settings), as_of), old)
    return ids, changes


def forget_members(settings: Settings, *, as_of: int) -> None:
    """Delete the members that no clustering will inherit from: all but those of `as_of` and, for its repetition, those before it."""
    kept = {as_of, last_clustering(settings, as_of=as_of)}
    for moment, file in timed_files(_folder(settings)).items():
        if moment not in kept:
            file.unlink(missing_ok=True)


def _folder(settings: Settings) -> Path:
    return settings.data_path / "members"


def _read(file: Path) -> dict[str, Clusters]:
    table = pq.read_table(file, schema=MEMBERS)
    rows = zip(*(table[name].to_pylist() for name in MEMBERS.names), strict=True)
    users: dict[str, Clusters] = {}
    for (user, cluster), items in groupby(rows, key=lambda row: (row[0], row[1])):
        users.setdefault(user, {})[cluster] = [item for _, _, item in items]
    return users


def _write(file: Path, users: Mapping[str, Clusters]) -> None:
    clusters = [(user, cluster, items) for user, named in sorted(users.items()) for cluster, items in named.items()]
    columns = (
        [user for user, _, items in clusters for _ in items],
        [cluster for _, cluster, items in clusters for _ in items],
        [item for _, _, items in clusters for item in items],
    )
    write_table(pa.table([pa.array(column, pa.string()) for column in columns], schema=MEMBERS), file)


def _strings(item_ids: pa.Array, groups: Sequence[Ints]) -> list[list[str]]:
    """The ids of each group of rows."""
    flat = np.concatenate(groups) if groups else np.zeros(0, np.int64)
    strings = item_ids.take(pa.array(flat, pa.int64())).to_pylist()
    ends = np.cumsum([len(group) for group in groups], dtype=np.int64).tolist()
    return [strings[end - len(group) : end] for group, end in zip(groups, ends, strict=True)]
