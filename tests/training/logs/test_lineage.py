"""Clustering a second time: what is inherited, what a crash leaves, and where the fold's sums go."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bandit.errors import InvalidTableError, InvalidValueError
from bandit.records import Decision, Feedback
from bandit.rewards.feedback import FUTURE_TOLERANCE
from bandit.rewards.lineage import Move, Reclustering, owners_now
from bandit.settings.load import Settings
from feature_repo import names
from tests.conftest import Deployment
from tests.tables_made import DAY, HOUR, MINUTE, NOW, decision, feedback, write_decisions, write_embeddings, write_feedback, write_history
from training.clustering import cluster as step
from training.clustering.cluster import Clustered, cluster
from training.features.fold import fold
from training.features.snapshots import newest_snapshot
from training.logs.lineage import read_lineage, write_lineage
from training.logs.schemas import RECLUSTERINGS

EMPTY: Mapping[str, float] = {}
Places = Mapping[str, Sequence[str]]  # user -> one letter for each item: where it lies; "." is nowhere


class World:
    """Users whose items lie where the test says: items of one letter are one cluster, letters are far apart."""

    def __init__(self, deployment: Deployment, folder: Path, **clustering: int) -> None:
        plain = deployment.settings
        changed = {"clustering": plain.clustering.model_copy(update={"processes": 1, **clustering})}
        changed |= {"intake": plain.intake.model_copy(update={"shrink": 1.0})}  # in worlds of two users each is more than a fifth
        self.settings = plain.model_copy(update=changed)
        self.folder = folder

    def cluster(self, places: Places, *, at: int, publish: Callable[[Sequence[Reclustering]], None] = lambda changes: None) -> Clustered:
        """Cluster; item i of user u is `u-i`, and the first of those that lie together is their medoid."""
        rows, ids, vectors = [], [], []
        for user, letters in places.items():
            for number, letter in enumerate(letters):
                if letter != ".":
                    rows.append((user, f"{user}-{number:02}", "repin", NOW - 30 * DAY))
                    ids.append(f"{user}-{number:02}")
                    vectors.append(np.eye(8)[ord(letter) - ord("a")])
        history = write_history(self.folder / "history.parquet", rows)
        embeddings = write_embeddings(self.folder / "items.parquet", ids, vectors, topics=[0] * len(ids))
        return cluster(self.settings, history=history, embeddings=embeddings, as_of=at, publish=publish)

    def clusters(self) -> dict[str, list[str]]:
        """Cluster ids that serving sees, by user, in order of id."""
        file = newest_snapshot(self.settings.feature_repo_path / names.USER_CLUSTERS_PATH, until=2**62)
        assert file is not None
        table = pq.read_table(file)
        return {row[names.JOIN_KEY]: sorted(row[names.CLUSTER_IDS]) for row in table.to_pylist()}

    def fold(self, *, at: int) -> dict[tuple[str, str], dict[str, float]]:
        """Newest sums of every user, as serving would find them."""
        fold(self.settings, as_of=at, now=at)
        return newest(self.settings)


def newest(settings: Settings) -> dict[tuple[str, str], dict[str, float]]:
    files = sorted((settings.feature_repo_path / names.CLUSTER_REWARDS_PATH).glob("2*.parquet"))
    rows = {row[names.JOIN_KEY]: row for file in files for row in pq.read_table(file).to_pylist()}
    return {
        (user, cluster_id): {name: row[name][place] for name in names.SUMS}
        for user, row in rows.items()
        for place, cluster_id in enumerate(row[names.REWARDED_CLUSTERS])
    }


@pytest.fixture
def world(deployment: Deployment, tmp_path: Path) -> World:
    return World(deployment, tmp_path)


def moves_of(world: World, *, until: int, user: str = "u") -> dict[tuple[str, str], float]:
    (change,) = read_lineage(world.settings, until)[user]
    assert change.effective_at == until + FUTURE_TOLERANCE
    return {(move.from_cluster, move.to_cluster): move.share for move in change.moves}


def files_of(settings: Settings) -> dict[str, bytes]:
    """Everything on disk that clustering writes."""
    folders = [settings.data_path, settings.feature_repo_path / "data"]
    return {str(file): file.read_bytes() for folder in folders for file in folder.rglob("*.parquet")}


# -- the step ---------------------------------------------------------------------------------------------------------------------


def test_a_first_clustering_is_named_by_its_medoids_and_has_no_lineage(world: World) -> None:
    assert world.cluster({"u": "aaab"}, at=NOW).changed == 0
    assert world.clusters() == {"u": ["u-00", "u-03"]}
    assert read_lineage(world.settings, NOW) == {}


def test_clusters_that_stay_keep_their_ids_whatever_their_medoids(world: World) -> None:
    world.cluster({"u": "aaaabb"}, at=NOW)
    assert world.cluster({"u": "baaabb"}, at=NOW + DAY).changed == 1  # u-00, which named the first, is the second's medoid now
    assert world.clusters() == {"u": ["u-00", "u-04"]}
    assert moves_of(world, until=NOW + DAY) == {("u-00", "u-00"): 0.75, ("u-00", "u-04"): 0.25}
    assert world.cluster({"u": "baaabb"}, at=NOW + 2 * DAY).changed == 0
    assert world.clusters() == {"u": ["u-00", "u-04"]}


def test_a_split(world: World) -> None:
    world.cluster({"u": "aaaab"}, at=NOW)
    world.cluster({"u": "aaccb"}, at=NOW + DAY)
    old = f"u-00~{NOW + DAY + FUTURE_TOLERANCE}"  # half of it: not the same cluster any more
    assert world.clusters() == {"u": [old, "u-02", "u-04"]}
    assert moves_of(world, until=NOW + DAY) == {("u-00", old): 0.5, ("u-00", "u-02"): 0.5}


def test_a_merge(world: World) -> None:
    world.cluster({"u": "aaabbc"}, at=NOW)
    world.cluster({"u": "aaaaac"}, at=NOW + DAY)
    assert world.clusters() == {"u": ["u-00", "u-05"]}
    assert moves_of(world, until=NOW + DAY) == {("u-03", "u-00"): 1.0}


def test_a_vanished_cluster_leaves_its_sums_where_they_are(world: World) -> None:
    world.cluster({"u": "aabb"}, at=NOW)
    write_feedback(world.settings, [feedback("e", at=NOW + HOUR, cluster_id="u-02")])
    before = world.fold(at=NOW + DAY)
    assert world.cluster({"u": "aa.."}, at=NOW + DAY).changed == 0
    assert world.clusters() == {"u": ["u-00"]}
    assert world.fold(at=NOW + DAY) == before
    assert set(before) == {("u", "u-02")}


def test_a_user_who_was_away_comes_back_to_the_same_clusters(world: World) -> None:
    world.cluster({"u": "aaaabb", "v": "a"}, at=NOW)
    world.cluster({"v": "a"}, at=NOW + DAY)
    assert world.clusters()["u"] == []
    assert world.cluster({"u": "baaabb", "v": "a"}, at=NOW + 2 * DAY).changed == 1
    assert world.clusters()["u"] == ["u-00", "u-04"]


def test_clusters_beyond_the_limit_keep_their_evidence_too(deployment: Deployment, tmp_path: Path) -> None:
    world = World(deployment, tmp_path, max_clusters=1)
    world.cluster({"u": "aaaabb"}, at=NOW)
    assert world.cluster({"u": "abbbbb"}, at=NOW + DAY).clusters == 1
    assert moves_of(world, until=NOW + DAY)["u-00", f"u-00~{NOW + DAY + FUTURE_TOLERANCE}"] == 0.25


def test_a_fresh_id_is_none_that_the_users_lineage_knows(world: World) -> None:
    for day, letters in enumerate(("aab", "aaa", "aab")):
        world.cluster({"u": letters}, at=NOW + day * DAY)
    # The first u-02 went into u-00, and an event that names it belongs there: what splits off now is another cluster of the same medoid.
    assert world.clusters() == {"u": ["u-00", f"u-02~{NOW + 2 * DAY + FUTURE_TOLERANCE}"]}


def test_repeating_a_clustering_gives_the_same_bytes(world: World) -> None:
    for day, letters in enumerate(("aaaabb", "aacccb", "aabbcc")):
        result = world.cluster({"u": letters, "v": "ab"}, at=NOW + day * DAY)
        files = files_of(world.settings)
        assert world.cluster({"u": letters, "v": "ab"}, at=NOW + day * DAY) == result
        assert files_of(world.settings) == files
    assert len(list((world.settings.data_path / "members").iterdir())) == 2


def test_a_clustering_in_the_past_is_refused(world: World) -> None:
    world.cluster({"u": "aab"}, at=NOW)
    before = files_of(world.settings)
    with pytest.raises(InvalidValueError, match=r"as_of: expected no time before the last clustering's \(.*20250501T000000\.000000"):
        world.cluster({"u": "abb"}, at=NOW - 1)
    assert files_of(world.settings) == before


def test_reclusterings_take_effect_in_the_order_in_which_they_were_made(world: World) -> None:
    for day, letters in enumerate(("aaabb", "aabbb")):
        world.cluster({"u": letters}, at=NOW + day * DAY)
    before = files_of(world.settings)
    files = {"history": world.folder / "history.parquet", "embeddings": world.folder / "items.parquet"}
    with pytest.raises(InvalidValueError, match="effective_at: expected a time after the last reclustering's"):
        cluster(world.settings, **files, as_of=NOW + DAY + 1, effective_at=lambda: NOW + DAY + FUTURE_TOLERANCE)
    assert files_of(world.settings) == before


def test_a_foreign_file_among_the_lineage_is_named(world: World) -> None:
    world.cluster({"u": "aab"}, at=NOW)
    (world.settings.data_path / "lineage" / "mine.parquet").write_bytes(b"")
    with pytest.raises(InvalidTableError, match=r"mine\.parquet: its name is no time, expected one such as 19700101T000000"):
        world.cluster({"u": "aab"}, at=NOW + DAY)


def test_changes_are_published_when_they_are_on_disk_and_before_they_are_served(world: World) -> None:
    world.cluster({"u": "aaab"}, at=NOW, publish=lambda changes: pytest.fail("nothing changed"))
    seen = []

    def publish(changes: Sequence[Reclustering]) -> None:
        assert list(changes) == read_lineage(world.settings, NOW + DAY)["u"]
        assert world.clusters() == {"u": ["u-00", "u-03"]}
        seen.append(changes)

    world.cluster({"u": "aacb"}, at=NOW + DAY, publish=publish)
    assert len(seen) == 1


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("later", [0, HOUR], ids=["the same time", "a later time"])
@pytest.mark.parametrize("crash", range(6))
def test_a_crash_between_writes_loses_nothing(world: World, monkeypatch: pytest.MonkeyPatch, crash: int, later: int) -> None:
    """Killed before or after any of its writes; run again, as of the same time or a later one, with yet another clustering."""
    places = [{"u": "aaaabb"}, {"u": "aacccb"}, {"u": "aabbcc" if later else "aacccb"}]
    published: list[Reclustering] = []
    world.cluster(places[0], at=NOW)
    write_feedback(world.settings, [feedback(f"e{item}", at=NOW + item, cluster_id=f"u-0{item}") for item in (0, 4)])
    total = sum(cell[names.IMPRESSIONS_LONG] for cell in world.fold(at=NOW + 2 * DAY).values())

    def die(*_: object, **__: object) -> None:
        raise Killed

    def publish(changes: Sequence[Reclustering]) -> None:
        published.extend(changes)

    with monkeypatch.context() as patch:
        for place, name in enumerate(("inherit", "write_lineage", "read_lineage", "_table", "write_snapshot", "forget_members")):
            if place == crash:
                patch.setattr(step, name, die)
        with pytest.raises(Killed):
            world.cluster(places[1], at=NOW + DAY, publish=publish)
    world.cluster(places[2], at=NOW + DAY + later, publish=publish)

    history = read_lineage(world.settings, NOW + 2 * DAY)["u"]
    assert sorted({change.effective_at for change in published}) == [change.effective_at for change in history]
    assert all(change in history for change in published)
    assert len(history) == (2 if later and crash >= 2 else 1)
    served = set(world.clusters()["u"])
    for old in ("u-00", "u-04"):
        assert set(owners_now(old, NOW, history)) <= served
    found = world.fold(at=NOW + 2 * DAY)
    assert {cluster_id for _, cluster_id in found} <= served
    assert sum(cell[names.IMPRESSIONS_LONG] for cell in found.values()) == pytest.approx(total, rel=1e-12)


# -- the fold ---------------------------------------------------------------------------------------------------------------------


def lineage(settings: Settings, moves: Iterable[tuple[str, str, float]], *, at: int, user: str = "u") -> None:
    """One user's reclustering, as a clustering as of `at` writes it."""
    listed = [Move(from_cluster=source, to_cluster=to, share=share) for source, to, share in moves]
    write_lineage(settings, [Reclustering(user_id=user, effective_at=at + FUTURE_TOLERANCE, moves=listed)], as_of=at)


def faded(at: int, *, as_of: int) -> float:
    return math.exp2(-(as_of - at) / (14 * DAY))


def test_sums_go_with_the_members(world: World) -> None:
    events = [feedback("a", at=NOW, cluster_id="a"), feedback("b", at=NOW + 1, cluster_id="b"), feedback("z", at=NOW, cluster_id="z")]
    write_feedback(world.settings, events)
    lineage(world.settings, [("a", "c", 0.25), ("a", "d", 0.75), ("b", "d", 1.0)], at=NOW + DAY)
    result = fold(world.settings, as_of=NOW + DAY, now=NOW + DAY)
    found = {cluster_id: cell for (_, cluster_id), cell in newest(world.settings).items()}
    first, second = faded(NOW, as_of=NOW + DAY), faded(NOW + 1, as_of=NOW + DAY)
    assert {cluster_id: cell[names.IMPRESSIONS_LONG] for cluster_id, cell in found.items()} == pytest.approx(
        {"c": first / 4, "d": 0.75 * first + second, "z": first}, rel=1e-12
    )
    assert result.events == 3


def test_a_decision_from_before_credits_the_right_cluster_afterwards(world: World) -> None:
    world.cluster({"u": "aaaabb"}, at=NOW)
    world.cluster({"u": "aaccbb"}, at=NOW + DAY)
    parts = [f"u-00~{NOW + DAY + FUTURE_TOLERANCE}", "u-02"]
    write_decisions(world.settings, [decision(1, at=NOW + DAY - MINUTE, drawn=[("u-00", "u-01"), ("u-04", "u-05")])])
    late = NOW + DAY + HOUR
    write_feedback(world.settings, [feedback("e", at=late, cluster_id="u-00"), feedback("f", at=late, cluster_id="u-04")])
    found = world.fold(at=late)
    assert {cluster_id: cell[names.IMPRESSIONS_LONG] for (_, cluster_id), cell in found.items()} == {
        parts[0]: 0.5,
        "u-02": 0.5,
        "u-04": 1.0,
    }
    drawn = {cluster_id: cell[names.DRAWS_SESSION] for (_, cluster_id), cell in found.items()}
    assert drawn[parts[0]] == drawn["u-02"] == drawn["u-04"] / 2 > 0.0


def test_a_recluster_is_news_for_the_fold_once_and_for_nobody_else(world: World) -> None:
    write_feedback(world.settings, [feedback("a", at=NOW, cluster_id="a"), feedback("b", at=NOW, cluster_id="a", user_id="v")])
    assert fold(world.settings, as_of=NOW + 2 * DAY, now=NOW + 2 * DAY).users == 2
    lineage(world.settings, [("a", "b", 1.0)], at=NOW + DAY)  # its clustering took long: a fold as of a later time has been before it
    again = fold(world.settings, as_of=NOW + 3 * DAY, now=NOW + 3 * DAY)
    assert (again.users, again.events) == (1, 2)
    assert set(newest(world.settings)) == {("u", "b"), ("v", "a")}
    assert fold(world.settings, as_of=NOW + 4 * DAY, now=NOW + 4 * DAY).users == 0


def test_a_clustering_after_the_reference_time_is_not_yet(world: World) -> None:
    write_feedback(world.settings, [feedback("a", at=NOW, cluster_id="a")])
    lineage(world.settings, [("a", "b", 1.0)], at=NOW + DAY)
    assert set(world.fold(at=NOW + DAY - 1)) == {("u", "a")}
    assert set(world.fold(at=NOW + DAY)) == {("u", "b")}


def test_snapshots_from_before_there_was_lineage_are_read(world: World) -> None:
    write_feedback(world.settings, [feedback("a", at=NOW, cluster_id="a")])
    fold(world.settings, as_of=NOW, now=NOW)
    for file in (world.settings.feature_repo_path / names.CLUSTER_REWARDS_PATH).iterdir():
        pq.write_table(pq.read_table(file).drop_columns([RECLUSTERINGS]), file)
    assert fold(world.settings, as_of=NOW + 1, now=NOW + 1).users == 0
    lineage(world.settings, [("a", "b", 1.0)], at=NOW + 2)
    assert fold(world.settings, as_of=NOW + 2, now=NOW + 2).users == 1
    assert fold(world.settings, as_of=NOW + 3, now=NOW + 3).users == 0


def test_a_thousand_users_split_and_merge_and_nothing_is_lost(world: World) -> None:
    """Through the step and the fold: totals to 1e-9, and clusters that nothing happened to have the same bits as without lineage."""
    rng = np.random.default_rng(11)
    letters = rng.choice(list("abcdef"), (1000, 12))
    world.cluster({f"u{user:04}": "".join(row) for user, row in enumerate(letters)}, at=NOW)
    at = NOW + 2 * DAY
    before = world.clusters()
    events: list[Feedback] = []
    for user, ids in before.items():
        for number in range(12):
            action = str(rng.choice(["impression", "repin", "hide"], p=[0.8, 0.15, 0.05]))
            when = at - int(rng.integers(0, 40 * DAY))
            events.append(feedback(f"{user}-{number}", at=when, user_id=user, cluster_id=str(rng.choice(ids)), action=action))
    decisions: list[Decision] = [
        decision(number, at=at - int(rng.integers(0, HOUR)), user_id=user, drawn=[(ids[0], "x"), (ids[-1], "y")])
        for number, (user, ids) in enumerate(before.items())
    ]
    write_feedback(world.settings, events)
    write_decisions(world.settings, decisions)
    plain = world.fold(at=at)
    for day in (1, 2):  # some users stay, some items move alone, some clusters merge, some split
        for user in range(400 * (day - 1), 700):
            row, kind = letters[user], rng.integers(4)
            one, other = rng.choice(list("abcdef"), 2, replace=False)
            if kind == 0:
                row[row == one] = other
            elif kind == 1:
                row[np.flatnonzero(row == one)[::2]] = rng.choice(list("gh"))
            elif kind == 2:
                row[rng.integers(12)] = other
        result = world.cluster({f"u{user:04}": "".join(row) for user, row in enumerate(letters)}, at=NOW + day * DAY)
        assert result.changed > 100
    folded = fold(world.settings, as_of=at, now=at)
    found = newest(world.settings)
    history = read_lineage(world.settings, at)
    assert folded.events == len(events) + 2 * len(decisions)

    left = {move.from_cluster for changes in history.values() for change in changes for move in change.moves}
    touched = left | {move.to_cluster for changes in history.values() for change in changes for move in change.moves}
    same = {key: cell for key, cell in plain.items() if key[1] not in touched}
    assert len(same) > 2000
    assert {key: found[key] for key in same} == same  # exactly
    totals: dict[str, dict[str, float]] = defaultdict(dict)
    for name in names.SUMS:
        for user in before:
            expected = math.fsum(cell[name] for (owner, _), cell in plain.items() if owner == user)
            totals[name][user] = math.fsum(cell[name] for (owner, _), cell in found.items() if owner == user) - expected
            assert abs(totals[name][user]) <= 1e-9 * max(1.0, abs(expected))
    after = world.clusters()
    assert all(cluster_id in after[user] for user, cluster_id in found)
    assert pa.array([len(ids) for ids in after.values()]).to_numpy().min() >= 1
