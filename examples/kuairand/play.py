"""One policy plays all users through the real path, in a deployment and a Redis database of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bandit.records import Feedback
from bandit.settings.load import DEFAULT_FILE, Settings, load_settings
from bandit.types import MICROSECONDS_PER_DAY
from examples.kuairand import data
from examples.kuairand.replay import Exposure, Pool, State, play, pools_of, requests, rounds
from feature_repo import names
from serving import QuerySelector
from training.clustering.cluster import cluster
from training.deployment import create
from training.features.fold import fold
from training.features.materialize import materialize
from training.logs.archive import move_logs
from training.logs.feedback import append_feedback
from training.logs.lineage import timed_file
from training.logs.tables import write_table
from training.retrain import retrain

POLICIES = ("uniform", "action_count", "importance", "query_reward", "bandit")
QUERIES = 2  # of a request: users have a median of three exposures to play
LEAST_COSINE = 0.3  # between an exposure and the medoid of its cluster
START = 1_650_816_000_000_000  # 2022-04-24 16:00 UTC, midnight in China: the history ends, the replay begins
ROUND = MICROSECONDS_PER_DAY  # between two retrainings, in replay time
SETTINGS = """
redis_url = "{redis_url}"

[reward]
weights = {{ long_view = 1.0, like = 1.0, hate = -1.0 }}
minimum = -1.0
maximum = 2.0
attribution_window_hours = 1.0

[clustering]
distance_threshold = 1.0
topics = 50

[policy]
name = "{policy}"
prior_strength = 30.0 # clusters of one user differ little here: within-user variance 0.08^2 against a noise of 0.225
optimism = 0.5
exploration_budget = 0.002
impressions_per_query = 1.0 # each query is shown one exposure

[gate]
mode = "off" # a new model a day, from a few hundred impressions: a gate would say "cannot tell" of most of them

[serving]
deadline_ms = 1000.0
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What a policy earned: totals by user, (users,); the running reward per impression and the share of cold clusters by round."""

    policy: str
    reward: list[float]
    impressions: list[int]
    decisions: int
    rows_materialized: int
    curve: list[dict[str, float]]
    evidence: dict[str, int]


def prepare(folder: Path, progress: Callable[[int, int], None]) -> Settings:
    """Write history and embeddings, and cluster every user; the deployments of the policies start from a copy."""
    create(folder, SETTINGS.format(redis_url="redis://127.0.0.1:1/0", policy="bandit"))
    settings = load_settings(folder / DEFAULT_FILE)
    data.write_history(folder / "history.parquet")
    data.write_embeddings(folder / "items.parquet")
    cluster(settings, history=folder / "history.parquet", embeddings=folder / "items.parquet", as_of=START, progress=progress)
    return settings


def snapshot_of(repository: Path) -> Path:
    """The clustering that every policy starts from."""
    return timed_file(repository / names.USER_CLUSTERS_PATH, START)


def make_pools(settings: Settings) -> list[Pool]:
    """Each user's later exposures, by the nearest of the user's clusters."""
    numbers, vectors = data.read_vectors()
    row = {str(number): place for place, number in enumerate(numbers.tolist())}
    table = pq.read_table(snapshot_of(settings.feature_repo_path), columns=[names.JOIN_KEY, names.CLUSTER_IDS])
    clusters = {
        user: (ids, vectors[[row[cluster_id] for cluster_id in ids]])
        for user, ids in zip(table[names.JOIN_KEY].to_pylist(), table[names.CLUSTER_IDS].to_pylist(), strict=True)
    }
    shown = data.read_exposures()
    exposures = [
        Exposure(item_id=str(item), at=at, actions=tuple(action for action, happened in shown.actions.items() if happened[place]))
        for place, (item, at) in enumerate(zip(shown.items.tolist(), shown.at.tolist(), strict=True))
    ]
    items = np.array([row[exposure.item_id] for exposure in exposures], np.int64)
    return pools_of(shown.users, items, exposures, clusters, vectors, LEAST_COSINE)


def play_policy(
    policy: str, folder: Path, prepared: Path, redis_url: str, pools: Sequence[Pool], seed: int, say: Callable[[int], None]
) -> Played:
    """Play every pool under a policy: select, show, fold, materialize, and for the bandit join, train and promote, once a day.

    Args:
        policy: its name.
        folder: of its deployment, made here.
        prepared: Feast repository with the clusters.
        redis_url: an empty database.
        pools: of all users.
        seed: of all draws.
        say: called with the number of requests played since the last call.
    """
    create(folder, SETTINGS.format(redis_url=redis_url, policy=policy))
    settings = load_settings(folder / DEFAULT_FILE)
    scheme = settings.reward.scheme()
    by_user = {pool.user_id: pool for pool in pools}
    clusters = pq.read_table(snapshot_of(prepared))
    players = clusters.filter(pc.is_in(clusters[names.JOIN_KEY], pc.cast(list(by_user), clusters[names.JOIN_KEY].type)))
    write_table(players, settings.feature_repo_path / snapshot_of(prepared).relative_to(prepared))
    materialized = materialize(settings, until=START).rows
    state, curve = State(), []
    pairs = sum(len(pool.exposures) for pool in pools)
    with QuerySelector.open(folder / DEFAULT_FILE) as selector:
        for number, (end, due) in enumerate(rounds(requests(pools, QUERIES), START, ROUND)):
            events: list[Feedback] = []
            for place, request in enumerate(due):
                pool = by_user[request.user_id]
                events += play(request, pool, state, selector.select, scheme.impression_reward, seed=(seed << 40) + (number << 24) + place)
                if place % 100 == 0:
                    say(min(100, len(due) - place))
            append_feedback(settings, events, f"round-{number:02}")
            materialized += _learn(settings, end)
            selector.refresh_model()
            impressions = sum(state.impressions.values())
            curve.append(
                {
                    "round": number + 1,
                    "impressions": impressions,
                    "reward_per_impression": sum(state.reward.values()) / impressions,
                    "cold_share": 1.0 - len(state.used) / pairs,
                }
            )
    counts = Counter(min(count, 5) for count in state.used.values()) + Counter({0: pairs - len(state.used)})
    return Played(
        policy=policy,
        reward=[state.reward.get(pool.user_id, 0.0) for pool in pools],
        impressions=[state.impressions.get(pool.user_id, 0) for pool in pools],
        decisions=state.decisions,
        rows_materialized=materialized,
        curve=curve,
        evidence={f"{count}+" if count == 5 else str(count): counts[count] for count in range(6)},
    )


def _learn(settings: Settings, as_of: int) -> int:
    """The scheduler's work at the end of a round; only the bandit has a model to train. Returns the rows materialized."""
    if settings.policy.name == "bandit":
        return retrain(settings, as_of=as_of, now=as_of).rows_materialized
    move_logs(settings)
    fold(settings, as_of=as_of, now=as_of)
    return materialize(settings, until=as_of).rows
