"""The story within one session, through the stream: five requests, each sees what happened after the one before.

Last week's request and feedback of forty users come from the batch side, with the model that was trained on them; `query-rewards stream`
then takes their sums over from the logs, and folds what the user does now.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from bandit.records import Feedback
from bandit.settings.load import DEFAULT_FILE, Settings, load_settings
from bandit.types import MICROSECONDS_PER_DAY
from examples import recipes
from examples.recipes import HERO, QUERIES, USERS, Round
from feature_repo.connection import connect
from feature_repo.keys import PARTITIONS, Keys
from serving import FeedbackLog, QuerySelector
from training.clustering.cluster import cluster
from training.deployment import create
from training.features.feature_store import online_rows
from training.features.materialize import materialize
from training.features.online_rows import RewardRows
from training.logs.feedback import append_feedback
from training.retrain import retrain

REQUESTS = 5
_PATIENCE_SECONDS = 30.0
_STREAM = "[stream]\nenabled = true\n"


def play(
    folder: Path, redis_url: str, policy: str = "bandit", *, seed: int = 1, show: Callable[[Round], None] = lambda _: None
) -> list[Round]:
    """Play the session in a new deployment; the database behind `redis_url` must be empty. Returns its requests, numbered from 1."""
    now = time.time_ns() // 1000
    settings = _last_week(folder, redis_url, policy, now - 7 * MICROSECONDS_PER_DAY, np.random.default_rng(seed))
    rows = online_rows(settings, connect(redis_url))
    seen: Counter[tuple[str, str]] = Counter()
    played = []
    with (
        _stream(folder, settings),
        QuerySelector.open(folder / DEFAULT_FILE) as selector,
        FeedbackLog.open(folder / DEFAULT_FILE) as feedback,
    ):
        for number in range(1, REQUESTS + 1):
            selection = selector.select(HERO, QUERIES, {"surface": "home"}, seed=seed + number)
            quotas = {recipes.topic_of(cluster_id): quota for cluster_id, quota in selection.quotas.items()}
            played.append(Round(number=number, quotas=quotas, policy=selection.policy, model_version=selection.model_version))
            show(played[-1])
            events = recipes.feedback(selection, HERO, time.time_ns() // 1000, recipes.THIS_WEEK, seen)
            feedback.record(events)
            _wait_for(rows, events)
    return played


def _last_week(folder: Path, redis_url: str, policy: str, start: int, rng: np.random.Generator) -> Settings:
    """Clusters, one request of each user with its feedback, and a model; then the stream is switched on."""
    create(folder, recipes.SETTINGS.format(redis_url=redis_url, policy=policy))
    file = folder / DEFAULT_FILE
    settings = load_settings(file)
    recipes.write_history(folder, rng, start)
    cluster(settings, history=folder / "history.parquet", embeddings=folder / "items.parquet", as_of=start)
    materialize(settings, until=start)
    seen: Counter[tuple[str, str]] = Counter()
    events: list[Feedback] = []
    with QuerySelector.open(file) as selector:
        for place, user_id in enumerate(USERS):
            selection = selector.select(user_id, QUERIES, {"surface": "home"}, now=start + place, seed=int(rng.integers(2**62)))
            events += recipes.feedback(selection, user_id, start + place, recipes.LAST_WEEK, seen)
    append_feedback(settings, events, "last-week")
    later = start + MICROSECONDS_PER_DAY // 2
    retrain(settings, as_of=later, now=later)
    file.write_text(file.read_text(encoding="utf-8") + _STREAM, encoding="utf-8")
    return load_settings(file)


@contextlib.contextmanager
def _stream(folder: Path, settings: Settings) -> Iterator[None]:
    """`query-rewards stream` in a process of its own, from when it owns every partition."""
    client, keys = connect(settings.redis_url), Keys.of(settings.feature_repo_path)
    states = [keys.partition(number).state for number in range(PARTITIONS)]
    command = [sys.executable, "-W", "ignore", "-m", "query_rewards", "stream", "--settings", str(folder / DEFAULT_FILE)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:  # noqa: S603 -- our own module
        try:
            _until(lambda: client.exists(*states) == len(states), process)
            yield
        finally:
            process.terminate()


def _wait_for(rows: RewardRows, events: list[Feedback]) -> None:
    """Until the last event is in the user's row; a few milliseconds."""
    last = max(event.occurred_at for event in events)
    _until(lambda: (row := rows.read(HERO)) is not None and row.as_of >= last)


def _until(done: Callable[[], bool], process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not done():
        if time.monotonic() > deadline or (process is not None and process.poll() is not None):
            raise TimeoutError("the stream did not fold what was recorded: see `query-rewards stream`")
        time.sleep(0.005)
