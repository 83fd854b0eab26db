"""Members: which items were in which cluster at the last clustering, so that the next one can inherit from it.

One file for each clustering, named by its time. A clustering counts once its lineage file is on disk: a members file without one is what a
crash left behind, and is not inherited from.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bandit.errors import InvalidValueError
from bandit.rewards.lineage import Reclustering, recluster
from bandit.settings.load import Settings
from bandit.types import Ints
from training.clustering.groups import starts_of
from training.clustering.pinnersage import UserClusters
from training.logs.lineage import Lineage, lineage_folder, read_lineage, timed_file, timed_files
from training.logs.schemas import MEMBERS
from training.logs.tables import read_own, write_table

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
    settings: Settings, user_ids: pa.Array, clustering: UserClusters, item_ids: pa.Array, *, last: int | None, as_of: int, effective_at: int
) -> tuple[pa.Array, list[Reclustering]]:
    """Ids of every user's new clusters (also those not served), and what changed since the clustering as of `last`.

    Writes the members of the new clusters, which count once the lineage file of `as_of` is there. A user who is not among `user_ids` (in
    ascending order) keeps the members of the last time.

    Raises: InvalidValueError when `effective_at` is not after the last reclustering's.
    """
    old = read_own(timed_file(_folder(settings), last), MEMBERS) if last is not None else MEMBERS.empty_table()
    history = read_lineage(settings, as_of - 1)
    latest = max((changes[-1].effective_at for changes in history.values()), default=-1)
    if effective_at <= latest:
        raise InvalidValueError("effective_at", expected=f"a time after the last reclustering's, {latest}", received=effective_at)
    ids, members = item_ids.take(pa.array(clustering.medoids)), item_ids.take(pa.array(clustering.members))
    changes: list[Reclustering] = []
    if old.num_rows or history:
        ids, changes = _inherited(_by_user(old), history, user_ids, clustering, ids, members, effective_at)
    size_of_user = np.add.reduceat(clustering.item_counts, starts_of(clustering.clusters)) if len(user_ids) else clustering.clusters
    new = pa.table([_each(user_ids, size_of_user), _each(ids, clustering.item_counts), members], schema=MEMBERS)
    kept = old.filter(pc.invert(pc.is_in(old["user_id"], user_ids)))
    if kept.num_rows:
        new = pa.concat_tables([new, kept]).sort_by("user_id")  # a stable sort
    write_table(new, timed_file(_folder(settings), as_of))
    return ids, changes


def _inherited(
    old: Mapping[str, Clusters],
    history: Lineage,
    user_ids: pa.Array,
    clustering: UserClusters,
    fresh_ids: pa.Array,
    members: pa.Array,
    effective_at: int,
) -> tuple[pa.Array, list[Reclustering]]:
    """The ids, and what changed."""
    fresh, items = iter(fresh_ids.to_pylist()), iter(members.to_pylist())
    sizes = iter(clustering.item_counts.tolist())
    ids: list[str] = []
    changes: list[Reclustering] = []
    for user, clusters in zip(user_ids.to_pylist(), clustering.clusters.tolist(), strict=True):
        new = [list(islice(items, size)) for size in islice(sizes, clusters)]
        earlier = {name for change in history.get(user, ()) for move in change.moves for name in (move.from_cluster, move.to_cluster)}
        named, change = recluster(user, old.get(user, {}), new, list(islice(fresh, clusters)), effective_at, taken=earlier)
        ids += named
        changes += [change] if change else []
    return pa.array(ids, pa.string()), changes


def forget_members(settings: Settings, *, as_of: int) -> None:
    """Delete the members that no clustering will inherit from: all but those of `as_of` and, for its repetition, those before it."""
    kept = {as_of, last_clustering(settings, as_of=as_of)}
    for moment, file in timed_files(_folder(settings)).items():
        if moment not in kept:
            file.unlink(missing_ok=True)


def _folder(settings: Settings) -> Path:
    return settings.data_path / "members"


def _by_user(members: pa.Table) -> dict[str, Clusters]:
    rows = zip(*(members[name].to_pylist() for name in MEMBERS.names), strict=True)
    users: dict[str, Clusters] = {}
    for (user, cluster), items in groupby(rows, key=lambda row: (row[0], row[1])):
        users.setdefault(user, {})[cluster] = [item for _, _, item in items]
    return users


def _each(values: pa.Array, times: Ints) -> pa.Array:
    """Each value as often as that."""
    return values.take(pa.array(np.repeat(np.arange(len(values)), times)))
