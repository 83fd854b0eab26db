"""The lineage log: one file for each clustering, named by its time, with what changed; and crediting the fold's rows through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from bandit.errors import InvalidTableError
from bandit.rewards.lineage import Move, Reclustering, owner_intervals
from bandit.settings.load import Settings
from training.logs.schemas import LINEAGE
from training.logs.tables import read_own, write_table

_NAME = "%Y%m%dT%H%M%S.%f"
_CREDIT = pa.schema(
    [
        ("user", pa.string()),
        ("credited", pa.string()),
        ("after", pa.int64()),
        ("until", pa.int64()),
        ("to_cluster", pa.string()),
        ("share", pa.float64()),
        ("first", pa.bool_()),
    ]
)
Lineage = Mapping[str, Sequence[Reclustering]]


def timed_file(folder: Path, as_of: int) -> Path:
    """The file of a folder that holds what was made as of this time (UTC microseconds); names sort by time."""
    return folder / f"{datetime.fromtimestamp(as_of // 1_000_000, UTC).replace(microsecond=as_of % 1_000_000):{_NAME}}.parquet"


def time_of(file: Path) -> int:
    """The time that a file is named by, UTC microseconds. Raises: ValueError when its name is no time."""
    moment = datetime.strptime(file.stem, _NAME).replace(tzinfo=UTC)
    return round(moment.replace(microsecond=0).timestamp()) * 1_000_000 + moment.microsecond


def timed_files(folder: Path) -> dict[int, Path]:
    """All such files of a folder by their time, the oldest first.

    Raises: InvalidTableError for a file that is named otherwise.
    """
    times = {}
    for file in sorted(folder.glob("*.parquet")):
        try:
            times[time_of(file)] = file
        except ValueError as error:
            raise InvalidTableError(str(file), f"its name is no time, expected one such as {timed_file(folder, 0).name}") from error
    return times


def lineage_folder(settings: Settings) -> Path:
    """Where the lineage log is."""
    return settings.data_path / "lineage"


def write_lineage(settings: Settings, changes: Sequence[Reclustering], *, as_of: int) -> Path:
    """Write what the clustering as of this time changed, also when that is nothing: the file says that the clustering counts."""
    rows = [
        (change.user_id, change.effective_at, move.from_cluster, move.to_cluster, move.share) for change in changes for move in change.moves
    ]
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(LINEAGE)
    file = timed_file(lineage_folder(settings), as_of)
    write_table(pa.table([pa.array(column, field.type) for column, field in zip(columns, LINEAGE, strict=True)], LINEAGE), file)
    return file


def read_lineage(settings: Settings, until: int, *, since: int = 0) -> dict[str, list[Reclustering]]:
    """Each user's reclusterings, in order of time: those of the clusterings made as of within (since, until], UTC microseconds."""
    files = [file for as_of, file in timed_files(lineage_folder(settings)).items() if since < as_of <= until]
    history: dict[str, list[Reclustering]] = {}
    for file in files:
        columns = read_own(file, LINEAGE).to_pydict()
        rows = zip(*(columns[name] for name in LINEAGE.names), strict=True)
        for (user, effective_at), moves in groupby(rows, key=lambda row: (row[0], row[1])):
            change = Reclustering(
                user_id=user,
                effective_at=effective_at,
                moves=[Move(from_cluster=source, to_cluster=to, share=share) for _, _, source, to, share in moves],
            )
            history.setdefault(user, []).append(change)
    return history


def credited(rows: ir.Table, lineage: Lineage) -> ir.Table:
    """The fold's rows, each given to the clusters where its term belongs now, with the `share` of each.

    Args:
        rows: user_id, cluster_id, at (microseconds) and what else; a row that lineage says nothing about stays, with share 1.
        lineage: each user's reclusterings.

    Returns: the columns of `rows`, `share`, and `first`: true for exactly one of the rows that one row became.
    """
    rows_of_owners: list[tuple[str, str, int, int, str, float, bool]] = []
    for user, history in lineage.items():
        for interval in owner_intervals(history):
            owners = sorted(interval.owners.items(), key=lambda owner: (-owner[1], owner[0]))  # the first has the largest share
            when = user, interval.cluster_id, interval.after, interval.until
            rows_of_owners += [(*when, to, share, not rank) for rank, (to, share) in enumerate(owners)]
    columns = list(zip(*rows_of_owners, strict=True)) if rows_of_owners else [()] * len(_CREDIT)
    targets = ibis.memtable(pa.table([pa.array(column, field.type) for column, field in zip(columns, _CREDIT, strict=True)], _CREDIT))
    here = [rows.user_id == targets.user, rows.cluster_id == targets.credited, rows.at > targets.after, rows.at <= targets.until]
    joined = rows.left_join(targets, here)
    return joined.select(
        **{name: joined[name] for name in rows.columns if name != "cluster_id"},
        cluster_id=joined.to_cluster.coalesce(joined.cluster_id),
        share=joined.share.fill_null(1.0),
        first=joined["first"].fill_null(True),  # noqa: FBT003 -- the value for rows without lineage
    )
