"""Cluster: engagement history and item embeddings to PinnerSage clusters, one row of `user_clusters` per user."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bandit.errors import NothingUsableError, SnapshotShrinksError
from bandit.rewards.feedback import FUTURE_TOLERANCE
from bandit.rewards.lineage import Reclustering
from bandit.settings.load import Settings
from bandit.types import Floats, Ints
from feature_repo import names
from training.clustering.embeddings import Embeddings, read_embeddings
from training.clustering.groups import offsets_of, places_in
from training.clustering.inherit import forget_members, inherit, last_clustering
from training.clustering.pinnersage import UserClusters, UserHistories, joined
from training.clustering.topics import item_topics, topic_history
from training.clustering.workers import workers
from training.features.snapshots import adopt_single_file, forget_snapshots, served_users, snapshot_files, snapshot_time, write_snapshot
from training.logs.files import parquet_files
from training.logs.lineage import read_lineage, write_lineage
from training.logs.reader import Reading, read_files, without_repetitions
from training.logs.rejected import RejectedRows
from training.logs.schemas import ENGAGEMENTS, USER_CLUSTERS
from training.logs.tables import rows_of

_ENGAGEMENTS_PER_TASK = 4_000
_ROWS = USER_CLUSTERS.remove(USER_CLUSTERS.get_field_index(names.CLUSTERS_GENERATION))  # which is given when they are written


@dataclass(frozen=True, slots=True, kw_only=True)
class Clustered:
    """What a clustering did.

    left: users of the last snapshot without clusters in this one.
    changed: users whose clusters did not stay what they were at the last clustering.
    repeated, later: rows of the history that were left out, as one like them was taken, or as they came after `as_of`.
    normalised: embeddings that were not of length 1.
    rejected: rows that cannot be used, by reason.
    """

    users: int
    left: int
    clusters: int
    changed: int
    engagements: int
    without_embedding: int
    repeated: int
    later: int
    normalised: int
    rejected: Mapping[str, int]
    file: str


def histories(table: pa.Table, embeddings: Embeddings, action_types: Sequence[str]) -> tuple[pa.Array, UserHistories]:
    """Users in order of id; engagements with items that have no embedding are left out."""
    rows = pc.fill_null(pc.index_in(table["item_id"], embeddings.item_ids), -1).to_numpy()
    kept = table.append_column("row", pa.array(rows)).filter(pa.array(rows >= 0))
    user_ids = kept["user_id"].unique().sort()
    by_name = np.argsort(action_types)
    columns = {
        "user": pc.index_in(kept["user_id"], user_ids),
        "occurred_at": kept["occurred_at"].cast(pa.int64()),
        "row": kept["row"],
        "action": pc.index_in(kept["action"], pa.array(sorted(action_types), pa.string())),
    }
    ordered = pa.table(columns).sort_by([(name, "ascending") for name in columns])
    return user_ids, UserHistories(
        engagements=np.bincount(ordered["user"].to_numpy(), minlength=len(user_ids)),
        items=ordered["row"].to_numpy().astype(np.int64),
        actions=by_name[ordered["action"].to_numpy()],
        occurred_at=ordered["occurred_at"].to_numpy(),
    )


def cluster(
    settings: Settings,
    *,
    history: Path,
    embeddings: Path,
    as_of: int,
    now: int | None = None,
    effective_at: Callable[[], int] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    publish: Callable[[Sequence[Reclustering]], None] = lambda changes: None,
) -> Clustered:
    """Cluster every user of `history` and write the snapshot of `user_clusters` at `as_of`.

    New clusters inherit the ids and the evidence of the last clustering's. Killed at any instruction, the step can be repeated, as of the
    same time or a later one; repeating it with the same files gives the same bytes. With other files, as of the same time, it replaces what
    the earlier run; changes that `publish` handed over by then remain.

    Args:
        settings: action types and clustering; `processes` processes share the users.
        history: Parquet file, or folder of such, of engagements. Actions of positive weight make the clusters; impressions, when the
            history has them, tell what each topic earned.
        embeddings: Parquet file, or folder of such, of item embeddings.
        as_of: UTC microseconds; the rows' time, and the time that ages are taken at. Later engagements are left out.
        now: the clock, by which engagements of the future are put aside; None: they are only left out.
        effective_at: asked when the clusters are made: events up to this time follow the members of the cluster that they name, UTC
            microseconds. It must be as late as an event can be that is counted before `publish` ends; when left out, that of `as_of`.
        progress: called with users done and users in all, some users at a time.
        publish: called with what changed, in order of time, once that is in the lineage log and before the new clusters are served. A run
            after a crash hands over what the crashed one may not have; the same change can come twice.

    Raises: InvalidTableError, TooManyBadRowsError; InvalidValueError for a time before the last clustering's; NothingUsableError and
        SnapshotShrinksError when the last snapshot is better than what these files give. A user without usable history gets no row,
        which is not an error.
    """
    last = last_clustering(settings, as_of=as_of)
    scheme = settings.reward.scheme()
    action_types = scheme.action_types
    refused = [RejectedRows(source=str(history)), RejectedRows(source=str(embeddings))]
    folder = settings.feature_repo_path / names.USER_CLUSTERS_PATH
    adopt_single_file(folder)
    many = sum(rows_of(part) for part in parquet_files(history)) > _ENGAGEMENTS_PER_TASK
    with workers((settings.clustering.processes or os.cpu_count() or 1) if many else 1) as cluster_all:
        past = read_files(history, Reading(schema=ENGAGEMENTS, now=now, actions=action_types), refused[0])
        space = read_embeddings(embeddings, refused[1])
        rejected = Counter[str]()
        for part in refused:
            rejected.update(part.settle(settings))
        past, repeated = without_repetitions(past)
        known = past.filter(pc.less_equal(past["occurred_at"].cast(pa.int64()), as_of + FUTURE_TOLERANCE))
        engaged = known.filter(pc.is_in(known["action"], pa.array([action for action, weight in scheme.weights.items() if weight > 0.0])))
        user_ids, engagements = histories(engaged, space, action_types)
        _check_users(settings, history, engaged, space, user_ids, served_users(folder, until=as_of))
        topics = space.topics
        if topics is None:
            topics = item_topics(space.vectors, settings.data_path / "topics.npy", settings.clustering)
        earned = topic_history(known, space.item_ids, topics, scheme)
        parts = cluster_all(_tasks(engagements), space.vectors, len(action_types), settings.clustering, as_of)
        found = joined(list(_counted(parts, len(user_ids), progress)))
    until = effective_at() if effective_at else as_of + FUTURE_TOLERANCE
    ids, changes = inherit(settings, user_ids, found, space.item_ids, last=last, as_of=as_of, effective_at=until)
    write_lineage(settings, changes, as_of=as_of)
    unpublished = read_lineage(settings, as_of, since=min(_made_as_of(folder), as_of - 1))
    if unpublished:
        publish(sorted((change for user in unpublished.values() for change in user), key=lambda change: change.effective_at))
    table = _table(user_ids, found, ids, space, topics, earned, action_types, as_of)
    before = served_users(folder, until=as_of - 1)
    gone = before.filter(pc.invert(pc.is_in(before, user_ids)))
    rows = pa.concat_tables([table, _without_clusters(gone, action_types, as_of)]).sort_by(names.JOIN_KEY)
    file = write_snapshot(folder, rows, USER_CLUSTERS, as_of=as_of)
    forget_members(settings, as_of=as_of)
    forget_snapshots(folder, as_of=as_of, days=settings.retention.snapshot_days)
    return Clustered(
        users=len(user_ids),
        left=len(gone),
        clusters=int(found.served.sum()),
        changed=len(changes),
        engagements=engaged.num_rows,
        without_embedding=engaged.num_rows - len(engagements.items),
        repeated=repeated,
        later=past.num_rows - known.num_rows,
        normalised=space.normalised,
        rejected=dict(rejected),
        file=str(file),
    )


def _check_users(settings: Settings, history: Path, engaged: pa.Table, space: Embeddings, user_ids: pa.Array, served: pa.Array) -> None:
    """Refuse a clustering that would leave no user, or too few of the served ones."""
    if not len(user_ids):
        problem = "no engagement of positive weight by `as_of`"
        if engaged.num_rows:
            examples = engaged["item_id"][0].as_py(), space.item_ids[0].as_py()
            problem = f"none of its items has an embedding: its ids are such as {examples[0]!r}, the embeddings' such as {examples[1]!r}"
        raise NothingUsableError(str(history), problem)
    lost = len(served.filter(pc.invert(pc.is_in(served, user_ids))))
    if lost > settings.intake.shrink * len(served):
        raise SnapshotShrinksError(str(settings.feature_repo_path / names.USER_CLUSTERS_PATH), lost, len(served), settings.intake.shrink)


def _tasks(histories: UserHistories) -> Iterator[UserHistories]:
    """The users in tasks of about `_ENGAGEMENTS_PER_TASK`, which bounds the memory of each."""
    offsets = offsets_of(histories.engagements)
    cuts = np.flatnonzero(np.diff(offsets[:-1] // _ENGAGEMENTS_PER_TASK)) + 1
    for first, last in pairwise([0, *cuts, len(histories.engagements)]):
        rows = slice(offsets[first], offsets[last])
        yield UserHistories(
            engagements=histories.engagements[first:last],
            items=histories.items[rows],
            actions=histories.actions[rows],
            occurred_at=histories.occurred_at[rows],
        )


def _counted(parts: Iterable[UserClusters], users: int, progress: Callable[[int, int], None]) -> Iterator[UserClusters]:
    done = 0
    for part in parts:
        done += len(part.clusters)
        progress(done, users)
        yield part


def _made_as_of(folder: Path) -> int:
    """Time of the newest snapshot on disk, 0 when there is none."""
    return max(map(snapshot_time, snapshot_files(folder)), default=0)


def _without_clusters(users: pa.Array, action_types: Sequence[str], as_of: int) -> pa.Table:
    columns: dict[str, list[object]] = {field.name: [[]] * len(users) for field in _ROWS}
    columns |= {names.JOIN_KEY: users.to_pylist(), names.ACTION_TYPES: [list(action_types)] * len(users)}
    columns |= {names.QUERY_OFFSETS: [[0]] * len(users), names.TIMESTAMP: [_naive(as_of)] * len(users)}
    return pa.table(columns, schema=_ROWS)


def _table(
    user_ids: pa.Array,
    found: UserClusters,
    ids: pa.Array,
    space: Embeddings,
    topics: Ints,
    history: Floats,
    action_types: Sequence[str],
    as_of: int,
) -> pa.Table:
    users, actions = len(user_ids), len(action_types)
    served = places_in(found.clusters) < np.repeat(found.served, found.clusters)
    medoids, query_counts = found.medoids[served], found.query_counts[served]
    asked = np.repeat(served, found.query_counts)
    offsets, query_ends = offsets_of(found.served), offsets_of(query_counts)
    queries = query_ends[offsets]
    first = np.repeat(queries[:-1], found.served + 1)  # first query of each user, repeated for each of its offsets
    per_user = places_in(found.served + 1) + np.repeat(offsets[:-1], found.served + 1)

    def lists(ends: Ints, values: Floats | Ints | pa.Array) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), values if isinstance(values, pa.Array) else pa.array(values))

    return pa.table(
        {
            names.JOIN_KEY: user_ids,
            names.CLUSTER_IDS: lists(offsets, ids.filter(pa.array(served))),
            names.TOPIC_IDS: lists(offsets, topics[medoids]),
            names.TOPIC_HISTORY: lists(offsets, history[medoids]),
            names.ITEM_COUNTS: lists(offsets, found.item_counts[served]),
            names.ACTION_TYPES: pa.array([list(action_types)] * users, pa.list_(pa.string())),
            names.ACTION_COUNTS: lists(offsets * actions, found.action_counts[served].ravel().astype(np.float64)),
            names.IMPORTANCE: lists(offsets, found.importance[served]),
            names.LAST_ACTION_AT: lists(offsets, found.last_action_at[served]),
            names.QUERY_ITEMS: lists(queries, space.item_ids.take(pa.array(found.query_items[asked]))),
            names.QUERY_WEIGHTS: lists(queries, found.query_weights[asked]),
            names.QUERY_OFFSETS: lists(offsets_of(found.served + 1), query_ends[per_user] - first),
            names.TIMESTAMP: pa.array([_naive(as_of)] * users, pa.timestamp("us")),
        },
        schema=_ROWS,
    )


def _naive(at: int) -> datetime:
    return datetime.fromtimestamp(at / 1e6, UTC).replace(tzinfo=None)
