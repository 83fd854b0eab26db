"""Train, register, promote, roll back: and the old model goes on serving whenever one of them fails."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from bandit.errors import (
    CorruptModelError,
    DependencyUnavailableError,
    EmptyLogError,
    NoEarlierChampionError,
    NoModelError,
    TooFewRowsError,
    UnknownModelError,
)
from bandit.model.featurize import FEATURE_NAMES, FEATURE_VERSION
from bandit.model.linear_model import LinearModel, Manifest, model_from_bytes, sha256, weight_count
from bandit.settings.load import Settings
from serving.served_model import ServedModel
from tests.conftest import Deployment
from tests.strategies import exploring
from tests.tables_made import DAY, KEYS, MINUTE, NOW, decision, feedback, write_decisions, write_embeddings, write_feedback, write_history
from training.clustering.cluster import cluster
from training.features.fold import fold
from training.models.join import join
from training.models.promote import promote, rollback
from training.models.registry import ModelRegistry
from training.models.train import Trained, train

DRAWN = [("a", "q1"), ("b", "q2")]


@pytest.fixture
def learning(learning: Deployment) -> Deployment:
    """Without a gate that rows would be held out for: every model learns from all of them."""
    return learning.change(mode='"off"')


def log(settings: Settings, decisions: int, *, start: int = 0, moment: int | None = None) -> None:
    """Training rows: two a decision, each with one impression; what the first cluster's brought depends on its features."""
    times = [NOW - 2 * DAY + (start + number if moment is None else moment) for number in range(decisions)]
    made = [decision(start + number, at=at, drawn=DRAWN) for number, at in enumerate(times)]
    events = []
    for one in made:
        for drawn_from, query in DRAWN:
            fields = {"decision_id": one.decision_id, "cluster_id": drawn_from, "query_id": query}
            events.append(feedback(f"{one.seed}{query}", at=one.decided_at + MINUTE, **fields))
            if drawn_from == "a" and one.seed % 3 == 0:
                events.append(feedback(f"{one.seed}{query}+", at=one.decided_at + MINUTE, action="repin", **fields))
    write_decisions(settings, made, name=f"{start:05d}")
    write_feedback(settings, events, name=f"{start:05d}")
    join(settings, as_of=NOW)


def trained(settings: Settings, decisions: int, *, start: int = 0) -> Trained:
    log(settings, decisions, start=start)
    return train(settings, as_of=NOW)


def pointer(deployment: Deployment) -> dict[str, str] | None:
    raw = deployment.redis.get(KEYS.champion)
    return None if raw is None else msgspec.msgpack.decode(raw, type=dict[str, str])


def served(deployment: Deployment) -> tuple[str, LinearModel]:
    """What a serving process that starts now would serve."""
    watching = ServedModel(deployment.redis, KEYS, poll_seconds=60.0)
    watching.close()
    assert watching.current is not None
    return watching.current


def artifact(settings: Settings, version: str) -> Path:
    """The file of a registered version; runs are made in the order of their versions."""
    files = sorted((settings.data_path / "mlflow").rglob("model.msgpack"), key=lambda file: file.stat().st_mtime_ns)
    return files[int(version) - 1]


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_from_rows_to_serving_and_back(learning: Deployment) -> None:
    settings = learning.settings
    first = trained(settings, 60)
    registry = ModelRegistry(settings)
    assert (first.version, first.rows, first.impressions) == ("1", 120, 120.0)
    assert first.mean_reward == pytest.approx(20 / 120)
    assert (registry.newest(), registry.champion()) == ("1", None)
    assert pointer(learning) is None  # training alone lets nothing serve

    promoted = promote(settings)
    assert (promoted.version, promoted.sha256, promoted.before) == ("1", first.sha256, "")
    assert pointer(learning) == {"version": "1", "sha256": first.sha256}
    version, model = served(learning)
    assert version == "1"
    assert model.to_bytes() == registry.load("1").to_bytes() == artifact(settings, "1").read_bytes()
    assert (model.manifest.rows, model.manifest.trained_from, model.manifest.trained_until) == (120, NOW - 2 * DAY, NOW - 2 * DAY + 59)
    features = np.random.default_rng(0).random((3, len(FEATURE_NAMES))).astype(np.float32)
    assert np.ptp(model.predict(features)) > 0.0

    second = trained(settings, 30, start=60)
    assert (second.version, second.rows) == ("2", 180)
    assert pointer(learning) == {"version": "1", "sha256": first.sha256}
    assert promote(settings).before == "1"
    assert pointer(learning) == {"version": "2", "sha256": second.sha256}
    old, new = (KEYS.model(one.sha256) for one in (first, second))
    assert 0 < learning.redis.ttl(old) <= 24 * 3600
    assert learning.redis.ttl(new) == -1

    back = rollback(settings)
    assert (back.version, back.sha256, back.before) == ("1", first.sha256, "2")
    assert served(learning)[0] == ModelRegistry(settings).champion() == "1"
    assert learning.redis.ttl(old) == -1  # it serves again, so it must not expire
    assert 0 < learning.redis.ttl(new) <= 24 * 3600

    with pytest.raises(NoEarlierChampionError, match="no earlier champion"):
        rollback(settings)
    assert served(learning)[0] == ModelRegistry(settings).champion() == "1"

    assert promote(settings, version="2").version == "2"
    assert served(learning)[0] == "2"


def test_where_a_gate_judges_the_newest_decisions_are_not_learned_from(learning: Deployment) -> None:
    settings = learning.change(mode='"enforce"').settings
    made = trained(settings, 60)
    assert made.rows == 94  # 47 whole decisions of the older four fifths
    assert ModelRegistry(settings).load("1").manifest.trained_until == NOW - 2 * DAY + 46


def test_training_twice_on_the_same_rows_is_the_same_version(learning: Deployment) -> None:
    first = trained(learning.settings, 40)
    again = train(learning.settings, as_of=NOW)
    assert again == first
    assert train(learning.settings, as_of=NOW + DAY).version == "1"
    promote(learning.settings)
    redis_before = pointer(learning)
    promote(learning.settings)
    assert pointer(learning) == redis_before
    assert ModelRegistry(learning.settings).newest() == "1"
    assert len(list((learning.settings.data_path / "mlflow").rglob("model.msgpack"))) == 1


def population(settings: Settings, folder: Path) -> None:
    """Two users with clusters a and b, whose sums are of different days."""
    rows = [(user, item, "repin", NOW - 3 * DAY) for user in "uv" for item in "ab"]
    history, space = write_history(folder / "h.parquet", rows), write_embeddings(folder / "e.parquet", "ab", np.eye(2), topics=[5, 6])
    cluster(settings, history=history, embeddings=space, as_of=NOW)
    fold(settings, as_of=NOW - DAY, now=NOW)
    events = [
        feedback("v1", at=NOW - DAY // 2, user_id="v", cluster_id="b"),
        feedback("v2", at=NOW - DAY // 2, user_id="v", cluster_id="b", action="repin"),
    ]
    write_feedback(settings, events, name="v")
    fold(settings, as_of=NOW, now=NOW)


def test_the_prior_of_the_population_travels_with_the_model(learning: Deployment, tmp_path: Path) -> None:
    log(learning.settings, 40)
    population(learning.settings, tmp_path)
    train(learning.settings, as_of=NOW + DAY)
    manifest = ModelRegistry(learning.settings).load("1").manifest
    old, new = (40 * 2 ** (-(3 * DAY - MINUTE) / (14 * DAY)), 2 ** (-1.5 / 14))  # impressions of u (each of two clusters) and of v
    reward = {5: old * 14 / 40, 6: new}
    impressions = {5: old, 6: old + new}
    mean = sum(reward.values()) / sum(impressions.values())
    strength = learning.settings.policy.prior_strength
    assert manifest.prior_strength == strength
    assert manifest.prior_mean == pytest.approx(mean, rel=1e-6)  # the decisions are some microseconds apart
    topics = {topic: (reward[topic] + strength * mean) / (impressions[topic] + strength) for topic in reward}
    assert manifest.topic_means == pytest.approx(topics, rel=1e-6)


def test_the_digest_that_training_returns_is_that_of_its_version(learning: Deployment, tmp_path: Path) -> None:
    log(learning.settings, 40)
    population(learning.settings, tmp_path)
    first, later = (train(learning.settings, as_of=NOW + day * DAY) for day in (0, 1))
    assert later.version == first.version
    assert later.sha256 == sha256(ModelRegistry(learning.settings).load(later.version).to_bytes())


def test_too_few_rows_are_no_candidate(learning: Deployment) -> None:
    log(learning.settings, 19)
    with pytest.raises(TooFewRowsError, match=r"38 training rows with impressions, training\.minimum_rows asks for 40"):
        train(learning.settings, as_of=NOW)
    assert ModelRegistry(learning.settings).newest() is None


def test_a_log_of_one_moment_leaves_nothing_to_learn_from(learning: Deployment) -> None:
    settings = learning.change(mode='"enforce"').settings
    log(settings, 50, moment=0)
    with pytest.raises(
        TooFewRowsError, match=r"^0 training rows .*the newest 100 rows, all of one moment, 2025-04-29 00:00:00 UTC, are held"
    ):
        train(settings, as_of=NOW)
    assert ModelRegistry(settings).newest() is None


def test_the_least_number_of_rows_is_asked_of_those_that_are_learned_from(learning: Deployment) -> None:
    settings = learning.change(mode='"enforce"').settings
    log(settings, 10)
    log(settings, 40, start=10, moment=100)
    with pytest.raises(TooFewRowsError, match=r"^20 training rows .*asks for 40: the newest 80 rows, all of one moment") as caught:
        train(settings, as_of=NOW)
    assert (caught.value.rows, caught.value.minimum) == (20, 40)


def test_draws_without_impressions_are_no_rows(learning: Deployment) -> None:
    log(learning.settings, 20)
    write_decisions(learning.settings, [decision(100 + number, at=NOW - 2 * DAY, drawn=DRAWN) for number in range(50)], name="unseen")
    assert join(learning.settings, as_of=NOW).rows == 140
    assert train(learning.settings, as_of=NOW).rows == 40


def test_steps_that_come_too_early_say_so(learning: Deployment) -> None:
    with pytest.raises(EmptyLogError, match="query-rewards join"):
        train(learning.settings, as_of=NOW)
    with pytest.raises(NoModelError, match="query-rewards train"):
        promote(learning.settings)
    with pytest.raises(UnknownModelError, match="no version '9'"):
        promote(learning.settings, version="9")
    with pytest.raises(NoEarlierChampionError, match="no earlier champion"):
        rollback(learning.settings)
    assert pointer(learning) is None


def model(number: int) -> LinearModel:
    """A model as training makes it, without the training."""
    weights = np.random.default_rng(number).normal(size=weight_count(len(FEATURE_NAMES))).astype("<f4").tobytes()
    manifest = Manifest(
        feature_version=FEATURE_VERSION,
        feature_names=list(FEATURE_NAMES),
        trained_from=NOW,
        trained_until=NOW + number,
        rows=number,
        impressions=float(number),
        learner="none",
        prior_mean=0.1,
        prior_strength=8.0,
        topic_means={3: 0.2},
        exploration=exploring(),
        weights_sha256=sha256(weights),
    )
    return LinearModel(manifest=manifest, weights=weights)


@pytest.fixture
def second(learning: Deployment) -> Deployment:
    """Version 1 serves, version 2 is a candidate."""
    registry = ModelRegistry(learning.settings)
    assert registry.add(model(1), {"rows": 1.0}) == "1"
    promote(learning.settings)
    assert registry.add(model(2), {"rows": 2.0}) == "2"
    return learning


@pytest.mark.parametrize("damage", ["cut", "bit", "gone"])
def test_a_corrupt_artifact_is_refused_and_the_old_model_serves_on(second: Deployment, damage: str) -> None:
    before = pointer(second)
    file = artifact(second.settings, "2")
    if damage == "cut":
        cut_in_half(file)
    elif damage == "bit":
        file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1]))
    else:
        file.unlink()
    with pytest.raises(CorruptModelError):
        promote(second.settings)
    assert pointer(second) == before
    assert served(second)[0] == ModelRegistry(second.settings).champion() == "1"


def test_rolling_back_to_a_corrupt_artifact_changes_nothing(second: Deployment) -> None:
    promote(second.settings)
    before = pointer(second)
    cut_in_half(artifact(second.settings, "1"))
    with pytest.raises(CorruptModelError):
        rollback(second.settings)
    assert pointer(second) == before
    assert ModelRegistry(second.settings).champion() == "2"


def test_a_corrupt_newest_version_does_not_stop_the_next_training(second: Deployment) -> None:
    cut_in_half(artifact(second.settings, "2"))
    assert trained(second.settings, 20).version == "3"


def test_what_serves_does_not_depend_on_the_registry(second: Deployment) -> None:
    champion = pointer(second)
    assert champion is not None
    for version in ("1", "2"):
        artifact(second.settings, version).write_bytes(b"")
    data = second.redis.get(KEYS.model(champion["sha256"]))
    assert model_from_bytes(data, champion["sha256"]).manifest.rows == 1
    assert served(second)[0] == "1"


def test_redis_away_promotes_nothing(second: Deployment) -> None:
    away = second.settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    with pytest.raises(DependencyUnavailableError):
        promote(away)
    assert ModelRegistry(away).champion() == "1"


def test_a_full_redis_is_said_and_nothing_is_promoted(second: Deployment) -> None:
    before = pointer(second)
    second.redis.config_set("maxmemory", "1")
    try:
        with pytest.raises(DependencyUnavailableError):
            promote(second.settings)
    finally:
        second.redis.config_set("maxmemory", "0")
    assert pointer(second) == before


def test_a_registry_that_is_not_there_yet_is_made(deployment: Deployment) -> None:
    with pytest.raises(NoModelError):
        promote(deployment.settings)
    assert (deployment.settings.data_path / "mlflow" / "mlflow.db").exists()


def test_another_tracking_store_can_be_named(
    learning: Deployment, migrated_database: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copy(migrated_database, tmp_path / "elsewhere.db")
    monkeypatch.chdir(tmp_path)  # MLflow puts the artifacts of a store that is not ours below the working directory
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'elsewhere.db'}")
    assert ModelRegistry(learning.settings).add(model(1), {}) == "1"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert ModelRegistry(learning.settings).newest() is None
