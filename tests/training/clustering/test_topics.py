"""Topics: kept between runs, and what they earned before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from bandit.errors import InvalidTableError
from bandit.rewards.scheme import RewardScheme
from bandit.settings.sections import ClusteringSettings
from tests.tables_made import NOW, unit_vectors
from training.clustering.topics import item_topics, topic_history
from training.logs.schemas import ENGAGEMENTS, TIME

SCHEME = RewardScheme(weights={"repin": 1.0, "hide": -1.0}, minimum=-1.0, maximum=2.0)


def table(rows: list[tuple[str, str, str]]) -> pa.Table:
    columns = list(zip(*rows, strict=True))
    return pa.table([*map(pa.array, columns), pa.array([NOW] * len(rows), TIME)], schema=ENGAGEMENTS)


def test_topics_are_nearest_centroids_and_are_kept(tmp_path: Path) -> None:
    vectors, file = unit_vectors(60, 5), tmp_path / "topics.npy"
    settings = ClusteringSettings(topics=4)
    first = item_topics(vectors, file, settings)
    centroids = np.load(file)
    assert (first == ((vectors[:, None] - centroids[None]) ** 2).sum(axis=2).argmin(axis=1)).all()
    assert (item_topics(vectors[::-1], file, ClusteringSettings(topics=9, seed=5)) == first[::-1]).all()
    with pytest.raises(InvalidTableError, match="5 dimensions"):
        item_topics(unit_vectors(9, 3), file, settings)


def test_a_topics_history_is_what_it_earned_above_its_users_averages() -> None:
    rng = np.random.default_rng(4)
    items, topics = [f"i{number}" for number in range(12)], np.arange(12) % 3
    rows, rewards = [], {}
    for user in range(8):
        for item in rng.choice(12, 7, replace=False):
            rewards[user, item] = 0.0
            rows.append((f"u{user}", items[item], "impression"))
            for action, worth, chance in (("repin", 1.0, 0.2 + 0.3 * (topics[item] == 1)), ("hide", -1.0, 0.2)):
                if rng.random() < chance:
                    rewards[user, item] += worth
                    rows.append((f"u{user}", items[item], action))
    rows.append(("u0", next(items[item] for item in range(12) if (0, item) not in rewards), "repin"))  # never shown: no impression
    overall = np.mean(list(rewards.values()))
    expected = []
    for topic in range(3):
        total, count = 0.0, 0
        for (user, item), reward in rewards.items():
            own = [held for (other, _), held in rewards.items() if other == user]
            if topics[item] == topic:
                total += reward - (sum(own) + 8 * overall) / (len(own) + 8)
                count += 1
        expected.append(total / (count + 50))
    found = topic_history(table(rows), pa.array(items), topics, SCHEME)
    assert found == pytest.approx([expected[topic] for topic in topics], abs=1e-12)
    far = topic_history(table(rows), pa.array(items), topics * 2**50 - 1, SCHEME)  # numbers as they come: hashes, -1 for unknown
    assert (far == found).all()
    assert np.argmax(expected) == 1


def test_a_history_without_impressions_says_nothing() -> None:
    assert (topic_history(table([("u", "i0", "repin")]), pa.array(["i0"]), np.array([2]), SCHEME) == np.zeros(1)).all()
