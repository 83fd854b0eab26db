"""Cluster: engagement history and item embeddings to PinnerSage clusters, one row of `user_clusters` per user."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bandit.intake import FUTURE_TOLERANCE
from bandit.lineage import Reclustering
from bandit.settings import Settings
from bandit.types import Floats, Ints
from feature_repo import names
from training.embeddings import Embeddings, read_embeddings
from training.lineage import read_lineage, write_lineage
from training.members import forget_members, inherit, last_clustering
from training.pinnersage import UserClusters, UserHistory, cluster_user
from training.tables import ENGAGEMENTS, USER_CLUSTERS, read_table, write_table
from training.topics import item_topics, topic_history

_USERS_PER_TASK = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Clustered:
    """What a clustering did. `changed`: users whose clusters did not stay what they were at the last clustering."""

    users: int
    clusters: int
    changed: int
    engagements: int
    without_embedding: int
    file: str


def histories(table: pa.Table, embeddings: Embeddings, action_types: Sequence[str]) -> Iterator[UserHistory]:
    """Users in order of id; engagements with items that have no embedding, or an all-zero one, are left out."""
    usable = np.append(np.abs(embeddings.vectors).sum(axis=1) > 0.0, False)
    rows = pc.fill_null(pc.index_in(table["item_id"], embeddings.item_ids), -1).to_numpy()
    table = table.append_column("row", pa.array(rows)).filter(pa.array(usable[rows]))
    if not table.num_rows:
        return
    table = table.sort_by([(column, "ascending") for column in ("user_id", "occurred_at", "row", "action")])
    users = table["user_id"].to_numpy()
    items = table["row"].to_numpy().astype(np.int64)
    actions = pc.index_in(table["action"], pa.array(list(action_types), pa.string())).to_numpy().astype(np.int64)
    times = table["occurred_at"].cast(pa.int64()).to_numpy()
    starts = np.flatnonzero(np.append(True, users[1:] != users[:-1])) if len(users) else np.array([], np.int64)
    for start, end in zip(starts, np.append(starts[1:], len(users)), strict=True):
        yield UserHistory(user_id=users[start], items=items[start:end], actions=actions[start:end], occurred_at=times[start:end])


def cluster(
    settings: Settings,
    *,
    history: Path,
    embeddings: Path,
    as_of: int,
    effective_at: Callable[[], int] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    publish: Callable[[Sequence[Reclustering]], None] = lambda changes: None,
) -> Clustered:
    """Cluster every user of `history` and write the snapshot of `user_clusters` at `as_of`.

    New clusters inherit the ids and the evidence of the last clustering's. Killed at any instruction, the step can be repeated, as of the
    same time or a later one; repeating it with the same files gives the same bytes. With other files, as of the same time, it replaces what
    it did, which whoever was told of that by `publish` cannot take back.

    Args:
        settings: action types and clustering; `processes` processes share the users.
        history: Parquet file of engagements. Actions of positive weight make the clusters; impressions, when the history has them,
            tell what each topic earned.
        embeddings: Parquet file of item embeddings.
        as_of: UTC microseconds; the rows' time, and the time that ages are taken at.
        effective_at: asked when the clusters are made: events up to this time follow the members of the cluster that they name, UTC
            microseconds. It must be as late as an event can be that is counted before `publish` ends; when left out, that of `as_of`.
        progress: called with users done and users in all.
        publish: called with what changed, in order of time, once that is in the lineage log and before the new clusters are served. A run
            after a crash hands over what the crashed one may not have; the same change can come twice.

    Raises: InvalidTableError; InvalidValueError for a time before the last clustering's. A user without usable history gets no row,
    which is not an error.
    """
    last = last_clustering(settings, as_of=as_of)
    scheme = settings.reward.scheme()
    action_types = scheme.action_types
    past = read_table(history, ENGAGEMENTS, now=as_of, actions=action_types)
    space = read_embeddings(embeddings)
    topics = (
        space.topics if space.topics is not None else item_topics(space.vectors, settings.data_path / "topics.npy", settings.clustering)
    )
    engaged = past.filter(pc.is_in(past["action"], pa.array([action for action, weight in scheme.weights.items() if weight > 0.0])))
    users = list(histories(engaged, space, action_types))
    found: list[UserClusters] = []
    work = partial(cluster_user, vectors=space.vectors, actions=len(action_types), settings=settings.clustering, as_of=as_of)
    for done in _in_processes(work, users, settings.clustering.processes):
        found.append(done)
        progress(len(found), len(users))
    until = effective_at() if effective_at else as_of + FUTURE_TOLERANCE
    ids, changes = inherit(settings, found, space.item_ids, last=last, as_of=as_of, effective_at=until)
    write_lineage(settings, changes, as_of=as_of)
    file = settings.feature_repo_path / names.USER_CLUSTERS_PATH
    unpublished = read_lineage(settings, as_of, since=min(_made_as_of(file), as_of - 1))
    if unpublished:
        publish(sorted((change for user in unpublished.values() for change in user), key=lambda change: change.effective_at))
    write_table(_table(found, ids, space, topics, topic_history(past, space.item_ids, topics, scheme), action_types, as_of), file)
    forget_members(settings, as_of=as_of)
    return Clustered(
        users=len(found),
        clusters=sum(len(user.medoids) for user in found),
        changed=len(changes),
        engagements=engaged.num_rows,
        without_embedding=engaged.num_rows - sum(len(user.items) for user in users),
        file=str(file),
    )


_work: Callable[[UserHistory], UserClusters]  # of a worker process


def _start(work: Callable[[UserHistory], UserClusters]) -> None:
    global _work  # noqa: PLW0603 -- the one way to hand a worker what it shall not unpickle for each task
    _work = work


def _one(history: UserHistory) -> UserClusters:
    return _work(history)


def _in_processes(work: Callable[[UserHistory], UserClusters], users: Sequence[UserHistory], processes: int) -> Iterator[UserClusters]:
    processes = processes or multiprocessing.cpu_count()
    if processes == 1 or len(users) <= _USERS_PER_TASK:
        yield from map(work, users)
        return
    context = multiprocessing.get_context("spawn")  # a fork would share this process' threads
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_start, initargs=(work,)) as pool:
        yield from pool.map(_one, users, chunksize=_USERS_PER_TASK)


def _made_as_of(file: Path) -> int:
    """Time of the snapshot on disk, 0 when there is none."""
    if not file.exists():
        return 0
    times = pq.read_table(file, columns=[names.TIMESTAMP])[names.TIMESTAMP]
    return pc.max(times.cast(pa.int64())).as_py() or 0


def _table(
    users: Sequence[UserClusters],
    ids: Sequence[Sequence[str]],
    space: Embeddings,
    topics: Ints,
    history: Floats,
    action_types: Sequence[str],
    as_of: int,
) -> pa.Table:
    sizes = [len(user.medoids) for user in users]
    offsets = np.concatenate(([0], np.cumsum(sizes))).astype(np.int32)
    medoids = _flat([user.medoids for user in users], np.int64)
    query_counts = [[len(items) for items in user.query_items] for user in users]
    query_offsets = [np.concatenate(([0], np.cumsum(counts))) for counts in query_counts]
    queries_per_user = np.concatenate(([0], np.cumsum([sum(counts) for counts in query_counts]))).astype(np.int32)

    def per_cluster(values: Floats | Ints | pa.Array) -> pa.Array:
        return pa.ListArray.from_arrays(offsets, values if isinstance(values, pa.Array) else pa.array(values))

    query_items = _flat([items for user in users for items in user.query_items], np.int64)
    return pa.table(
        {
            names.JOIN_KEY: pa.array([user.user_id for user in users], pa.string()),
            names.CLUSTER_IDS: per_cluster(
                pa.array([name for named, size in zip(ids, sizes, strict=True) for name in named[:size]], pa.string())
            ),
            names.TOPIC_IDS: per_cluster(topics[medoids]),
            names.TOPIC_HISTORY: per_cluster(history[topics[medoids]]),
            names.ITEM_COUNTS: per_cluster(_flat([user.item_counts for user in users], np.int64)),
            names.ACTION_TYPES: pa.array([list(action_types)] * len(users), pa.list_(pa.string())),
            names.ACTION_COUNTS: pa.ListArray.from_arrays(
                offsets * len(action_types), pa.array(_flat([user.action_counts.ravel() for user in users], np.float64))
            ),
            names.IMPORTANCE: per_cluster(_flat([user.importance for user in users], np.float64)),
            names.LAST_ACTION_AT: per_cluster(_flat([user.last_action_at for user in users], np.int64)),
            names.QUERY_ITEMS: pa.ListArray.from_arrays(queries_per_user, space.item_ids.take(pa.array(query_items))),
            names.QUERY_WEIGHTS: pa.ListArray.from_arrays(
                queries_per_user, pa.array(_flat([weights for user in users for weights in user.query_weights], np.float64))
            ),
            names.QUERY_OFFSETS: pa.array([offset.tolist() for offset in query_offsets], pa.list_(pa.int64())),
            names.TIMESTAMP: pa.array([datetime.fromtimestamp(as_of / 1e6, UTC).replace(tzinfo=None)] * len(users), pa.timestamp("us")),
        },
        schema=USER_CLUSTERS,
    )


def _flat(parts: Sequence[Floats | Ints], dtype: type) -> Floats | Ints:
    return np.concatenate(parts).astype(dtype) if parts else np.array([], dtype)
