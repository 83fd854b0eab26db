"""Two deployments on one Redis: decisions, feedback, sums, leases, models and online rows of the one are nothing to the other."""

from __future__ import annotations

from pathlib import Path

from bandit.settings.load import DEFAULT_FILE, load_settings
from feature_repo.connection import client_of
from feature_repo.keys import PARTITIONS
from serving import FeedbackLog, QuerySelector
from tests.served_world import Served, hand_over
from tests.strategies import random_model
from tests.tables_made import NOW, feedback
from training.deployment import create
from training.features.feature_store import apply, online_rows
from training.stream.consumer import Consumer

OTHER = "another"


def test_two_projects_on_one_redis_see_nothing_of_each_other(served: Served, tmp_path: Path) -> None:
    client, ours = served.redis, load_settings(served.settings_file())
    create(tmp_path, f'redis_url = "{served.redis_url}"\n')
    store = tmp_path / "feature_repo" / "feature_store.yaml"
    store.write_text(store.read_text().replace("project: query_rewards", f"project: {OTHER}"))
    theirs = load_settings(tmp_path / DEFAULT_FILE)
    apply(theirs)
    before = {*client.scan_iter()}
    other = Consumer(theirs, client_of(served.redis_url, timeout=5.0), online_rows(theirs, client))
    other.step(block=False)
    assert other.partitions == PARTITIONS

    hand_over(client, "1", random_model(1))
    with served.open() as selector, QuerySelector.open(tmp_path / DEFAULT_FILE) as stranger:
        assert selector.select("u0", 3).logged
        assert stranger.model.current is None
        assert stranger.select("u0", 3).reason == "unknown user"
    with FeedbackLog.open(served.settings_file()) as log:
        assert log.record([feedback("e", at=NOW, user_id="u0", cluster_id="u0-c0")], now=NOW).accepted == 1
    consumer = Consumer(ours, client_of(served.redis_url, timeout=5.0), online_rows(ours, client))
    assert sum(consumer.step(block=False) for _ in range(3)) == 2  # the decision and the event
    assert other.step(block=False) == 0
    assert consumer.partitions == other.partitions == PARTITIONS
    assert online_rows(ours, client).read("u0") is not None
    assert online_rows(theirs, client).read("u0") is None

    new = {*client.scan_iter()} - before
    mine, not_mine = (
        {key for key in new if key.startswith(b"{" + project) or key.endswith(project)} for project in (b"query_rewards", b"another")
    )
    assert mine
    assert not_mine
    assert not mine & not_mine
    assert mine | not_mine == new
