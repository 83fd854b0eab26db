"""The fold of 10,000,000 feedback events to features, against a hand-written DuckDB query of the same sums over the same Parquet file.

Each side in a process of its own, in turn; the fold also checks every event, makes the rows that Feast reads and writes them.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bandit.settings.load import DEFAULT_FILE, load_settings
from benchmarks.timing import in_processes
from feature_repo import names
from training.deployment import create
from training.features.fold import fold
from training.logs.engine import engine
from training.logs.schemas import FEEDBACK
from training.logs.tables import write_table

EVENTS, USERS, CLUSTERS, RUNS = 10_000_000, 100_000, 20, 3
NOW = 1_767_225_600_000_000
ACTIONS = ["impression", "repin", "click", "closeup", "hide"]
QUERY = """
WITH unique_events AS (
    SELECT event_id, min(user_id) AS user_id, min(cluster_id) AS cluster_id, min(action) AS action, epoch_us(min(occurred_at)) AS happened
    FROM read_parquet('{file}') GROUP BY event_id
), faded AS (
    SELECT user_id, cluster_id, action, happened,
        pow(2.0, (happened - {now}) / {session}) AS session, pow(2.0, (happened - {now}) / {long}) AS long,
        CASE action WHEN 'repin' THEN 1.0 WHEN 'click' THEN 0.5 WHEN 'closeup' THEN 0.25 WHEN 'hide' THEN -1.0 ELSE 0.0 END AS reward
    FROM unique_events WHERE happened <= {now}
)
SELECT user_id, cluster_id,
    coalesce(sum(session) FILTER (action = 'impression'), 0), sum(session * reward),
    coalesce(sum(long) FILTER (action = 'impression'), 0), sum(long * reward),
    count(*)
FROM faded GROUP BY user_id, cluster_id
"""


def write_events(file: Path) -> None:
    rng = np.random.default_rng(1)
    users, clusters = rng.integers(0, USERS, EVENTS), rng.integers(0, CLUSTERS, EVENTS)

    def text(prefix: str, numbers: np.ndarray) -> pa.Array:
        return pc.binary_join_element_wise(prefix, pa.array(numbers).cast(pa.string()), "")

    columns = {
        "event_id": text("event-", rng.permutation(EVENTS)),
        "decision_id": text("decision-", users),
        "user_id": text("user-", users),
        "cluster_id": text("cluster-", users * CLUSTERS + clusters),
        "query_id": text("query-", clusters),
        "item_id": text("item-", rng.integers(0, 1_000_000, EVENTS)),
        "action": pa.array(ACTIONS).take(pa.array(rng.choice(len(ACTIONS), EVENTS, p=[0.8, 0.08, 0.06, 0.04, 0.02]))),
        "occurred_at": pa.array(NOW - rng.integers(0, 28 * 86_400_000_000, EVENTS), pa.int64()).cast(FEEDBACK.field("occurred_at").type),
    }
    write_table(pa.table(columns, schema=FEEDBACK), file)


def child(side: str, folder: Path) -> None:
    settings = load_settings(folder / DEFAULT_FILE)
    for old in (settings.feature_repo_path / names.CLUSTER_REWARDS_PATH).glob("2*.parquet"):
        old.unlink()
    start = time.perf_counter()
    if side == "fold":
        fold(settings, as_of=NOW, now=NOW, full=True)
    else:
        lives = settings.reward.half_lives()
        file = settings.data_path / "feedback" / "a.parquet"
        query = QUERY.format(file=file, now=NOW, session=float(lives.session), long=float(lives.long))
        engine().raw_sql(query).fetch_arrow_table()
    print(time.perf_counter() - start)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        create(Path(folder), "")
        write_events(load_settings(Path(folder) / DEFAULT_FILE).data_path / "feedback" / "a.parquet")
        in_processes("fold_vs_sql", ("fold", "sql"), Path(folder), runs=RUNS, limit=1.5, events=EVENTS)


if __name__ == "__main__":
    child(sys.argv[1], Path(sys.argv[2])) if len(sys.argv) > 1 else main()
