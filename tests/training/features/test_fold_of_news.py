"""The fold of what is new against the fold of everything, over random histories; and the doubts that make it fold everything."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from bandit.records import Feedback
from bandit.rewards.feedback import FUTURE_TOLERANCE
from bandit.rewards.lineage import Move, Reclustering
from bandit.settings.load import Settings
from feature_repo import names
from tests.conftest import Deployment
from tests.tables_made import DAY, HOUR, MINUTE, NOW, decision, feedback, write_decisions, write_feedback
from training.features.fold import Folded, fold
from training.features.fold_state import last_state
from training.logs.archive import compact
from training.logs.lineage import timed_file, write_lineage
from training.models.train import population_prior

USERS, DAYS = 6, 5
ACTIONS = ["impression", "repin", "click", "hide"]
Sums = dict[tuple[str, str], dict[str, float]]


class KilledError(BaseException):
    """The process ends here."""


@contextlib.contextmanager
def killed_before(monkeypatch: pytest.MonkeyPatch, write: int) -> Iterator[None]:
    """The process dies before the file system is changed for the n-th time."""
    left = [write]

    def dying(change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(path: Path, *arguments: Any, **more: Any) -> Any:
            if not path.name.endswith(".partial") or change.__name__ == "replace":
                left[0] -= 1
                if left[0] < 0:
                    raise KilledError
            return change(path, *arguments, **more)

        return changed

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", dying(Path.replace))
        patched.setattr(Path, "unlink", dying(Path.unlink))
        yield


class History:
    """A deployment whose days go by: events, some late, some twice, some early; decisions; reclusterings; files of each day joined."""

    def __init__(self, settings: Settings, seed: int) -> None:
        self.settings, self.rng, self.number = settings, np.random.default_rng(seed), 0
        self.clusters = {f"u{user}": [f"c{number}" for number in range(3)] for user in range(USERS)}
        self.past: list[Feedback] = []

    def day(self, number: int) -> int:
        """One day's files; returns its end."""
        rng, end = self.rng, NOW + number * DAY
        folder = str(np.datetime64(end - DAY, "us"))[:10]
        if number and rng.random() < 0.7:
            self.recluster(end - int(rng.integers(HOUR, DAY)))
        for part in range(int(rng.integers(1, 4))):
            events = [self.event(end) for _ in range(int(rng.integers(1, 25)))]
            again = [self.past[place] for place in rng.integers(0, len(self.past), 3)] if self.past else []
            again = [event for event in again if event.occurred_at > end - 40 * HOUR]
            write_feedback(self.settings, [*events, *again, *events[:1]], name=f"{folder}/{part}")
            self.past += events
        users = rng.choice(list(self.clusters), 3)
        drawn = [(str(user), [(str(rng.choice(self.clusters[str(user)])), "q")] * 2) for user in users]
        made = [
            decision(1000 * number + place, at=end - int(rng.integers(-HOUR, DAY)), user_id=user, drawn=queries)
            for place, (user, queries) in enumerate(drawn)
        ]
        write_decisions(self.settings, [*made, made[0]], name=f"{folder}/0")
        return end

    def event(self, end: int) -> Feedback:
        rng = self.rng
        user, self.number = f"u{rng.integers(USERS - 1)}", self.number + 1
        age = rng.integers(-2 * HOUR, DAY) if rng.random() < 0.9 else rng.integers(DAY, 40 * HOUR)
        cluster, action = str(rng.choice([*self.clusters[user], "c0"])), str(rng.choice(ACTIONS))
        return feedback(f"e{self.number}", at=end - int(age), user_id=user, cluster_id=cluster, action=action)

    def recluster(self, at: int) -> None:
        changes = []
        for user in self.rng.choice(list(self.clusters), 2, replace=False):
            old = self.clusters[str(user)]
            fresh = f"{user}-{at}"
            moves = [
                Move(from_cluster=old[0], to_cluster=fresh, share=0.75),
                Move(from_cluster=old[0], to_cluster=old[1], share=0.25),
            ]
            changes.append(Reclustering(user_id=str(user), effective_at=at + FUTURE_TOLERANCE, moves=moves))
            self.clusters[str(user)] = [*old[1:], fresh]
        write_lineage(self.settings, changes, as_of=at)


def newest(settings: Settings, as_of: int) -> Sums:
    """The newest snapshot row of each user, faded to this time."""
    files = sorted((settings.feature_repo_path / names.CLUSTER_REWARDS_PATH).glob("2*.parquet"))
    rows = {row[names.JOIN_KEY]: row for file in files for row in sorted(pq.read_table(file).to_pylist(), key=lambda row: row[names.AS_OF])}
    lives = settings.reward.half_lives()
    result: Sums = {}
    for user, row in rows.items():
        factors = dict(zip(names.SUMS, lives.factors(as_of - row[names.AS_OF]), strict=True))
        for place, cluster in enumerate(row[names.REWARDED_CLUSTERS]):
            result[user, cluster] = {name: row[name][place] * factors[name] for name in names.SUMS}
    return result


def everything(settings: Settings, as_of: int, scratch: Path) -> tuple[Folded, Sums]:
    """What a fold of everything gives, in a copy of the deployment that has never folded."""
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(settings.data_path, scratch / "data", ignore=shutil.ignore_patterns("fold"))
    shutil.copytree(settings.feature_repo_path, scratch / "feature_repo", ignore=shutil.ignore_patterns("2*.parquet"))
    copy = settings.model_copy(update={"data": scratch / "data", "feature_repo": scratch / "feature_repo"})
    assert copy.data_path == scratch / "data"
    result = fold(copy, as_of=as_of, now=as_of + 3 * HOUR, full=True)
    return result, newest(copy, as_of)


def assert_same(got: Sums, expected: Sums) -> None:
    assert got.keys() == expected.keys()
    for key, row in expected.items():
        for name, value in row.items():
            slack = 1e-12 if "reward" in name else 1e-300  # rewards of both signs cancel
            assert got[key][name] == pytest.approx(value, rel=1e-9, abs=slack), (key, name)


@pytest.mark.parametrize("seed", range(4))
def test_news_and_everything_agree_whatever_happens_on_the_way(
    deployment: Deployment, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = deployment.change("[retention]\nsnapshot_days = 2.0\n").settings
    history = History(settings, seed)
    reasons = []
    for number in range(DAYS):
        end = history.day(number)
        now = end + 3 * HOUR
        if number and history.rng.random() < 0.7:
            with killed_before(monkeypatch, int(history.rng.integers(0, 9))), contextlib.suppress(KilledError):
                fold(settings, as_of=end - HOUR * int(history.rng.integers(0, 2)), now=now)
        result = fold(settings, as_of=end, now=now)
        reasons.append(result.full)
        whole, expected = everything(settings, end, tmp_path / "copy")
        assert result.events == whole.events
        assert_same(newest(settings, end), expected)
        if history.rng.random() < 0.7:
            with killed_before(monkeypatch, int(history.rng.integers(0, 6))), contextlib.suppress(KilledError):
                compact(settings, now=now)
    assert reasons[0] == "no fold has left its sums yet"
    assert not any(reason for reason in reasons[1:]), reasons


def two_days(settings: Settings) -> Callable[[], Folded]:
    """A day that was folded and a day that was not; returns the fold of the second."""
    write_feedback(settings, [feedback("1", at=NOW - HOUR), feedback("2", at=NOW - HOUR, user_id="other")], name="2025-04-30/a")
    write_decisions(settings, [decision(1, at=NOW - HOUR)], name="2025-04-30/a")
    assert fold(settings, as_of=NOW, now=NOW).full
    write_feedback(settings, [feedback("3", at=NOW + HOUR)], name="2025-05-01/a")
    return lambda: fold(settings, as_of=NOW + DAY, now=NOW + DAY)


def test_a_file_that_was_counted_is_not_read_again(deployment: Deployment) -> None:
    news = two_days(deployment.settings)
    for log in ("feedback", "decisions"):
        file = deployment.settings.data_path / log / "2025-04-30" / "a.parquet"
        status = file.stat()
        file.write_bytes(b"\0" * status.st_size)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    result = news()
    assert (result.full, result.users, result.events) == ("", 1, 4)


DOUBTS: dict[str, tuple[str, Callable[[Settings], object]]] = {
    "vanished": ("a.parquet was counted, and is gone", lambda s: (s.data_path / "feedback/2025-04-30/a.parquet").unlink()),
    "changed": ("a.parquet was counted", lambda s: write_feedback(s, [feedback("4", at=NOW - HOUR)], name="2025-04-30/a")),
    "old events": ("older than the intake window", lambda s: write_feedback(s, [feedback("5", at=NOW - 60 * HOUR)], name="old")),
    "old decisions": ("older than the intake window", lambda s: write_decisions(s, [decision(9, at=NOW - 60 * HOUR)], name="old")),
    "contradiction": ("other values", lambda s: write_feedback(s, [feedback("1", at=NOW - HOUR, action="repin")], name="again")),
    "manifest": ("state.json", lambda s: (s.data_path / "fold/state.json").write_text('{"format": 1}')),
    "sums": ("sums-00000001.parquet is damaged", lambda s: (s.data_path / "fold/sums-00000001.parquet").write_bytes(b"PAR1")),
    "events": ("events-00000001.parquet is damaged", lambda s: (s.data_path / "fold/events-00000001.parquet").unlink()),
    "snapshot": ("is gone or another", lambda s: timed_file(s.feature_repo_path / names.CLUSTER_REWARDS_PATH, NOW).unlink()),
    "lineage": ("lineage", lambda s: write_lineage(s, [], as_of=NOW - HOUR)),
    "late lineage": (
        "concerns the time before",
        lambda s: write_lineage(
            s, [Reclustering(user_id="u", effective_at=NOW, moves=[Move(from_cluster="c", to_cluster="d", share=1.0)])], as_of=NOW + HOUR
        ),
    ),
}


@pytest.mark.parametrize("doubt", DOUBTS)
def test_in_doubt_everything_is_folded_and_the_result_says_why(deployment: Deployment, tmp_path: Path, doubt: str) -> None:
    settings = deployment.settings
    news, (reason, disturb) = two_days(settings), DOUBTS[doubt]
    disturb(settings)
    result = news()
    assert reason in result.full
    whole, expected = everything(settings, NOW + DAY, tmp_path / "copy")
    assert result.events == whole.events
    if doubt not in {"vanished", "changed"}:  # the sums of their users of before stay on disk
        assert_same(newest(settings, NOW + DAY), expected)
    assert fold(settings, as_of=NOW + DAY + HOUR, now=NOW + DAY + HOUR).full == ""


def test_other_weights_and_earlier_times_fold_everything(deployment: Deployment) -> None:
    two_days(deployment.settings)()
    early = fold(deployment.settings, as_of=NOW + HOUR, now=NOW + DAY)
    assert (early.full, early.events) == ("it is as of a time before the last fold", 4)
    assert fold(deployment.settings, as_of=NOW + 2 * DAY, now=NOW + 2 * DAY).full == ""  # the look back has left the state alone
    changed = deployment.change(repin="0.75").settings
    assert fold(changed, as_of=NOW + 3 * DAY, now=NOW + 3 * DAY).full == "weights, half-lives or sums have changed"
    assert fold(changed, as_of=NOW + 4 * DAY, now=NOW + 4 * DAY, full=True).full == "it was asked for"


def test_the_same_time_again_changes_nothing_unless_files_have_come(deployment: Deployment) -> None:
    settings = deployment.settings
    news = two_days(settings)
    first = news()
    generation = last_state(settings).generation
    assert news() == first
    assert last_state(settings).generation == generation
    write_feedback(settings, [feedback("7", at=NOW + HOUR, user_id="new")], name="2025-05-01/b")
    again = news()
    assert "files have come since" in again.full
    assert again.users == 2  # both users of the second day, in the one snapshot of that time


def test_a_row_of_the_future_counts_once_its_time_has_come(deployment: Deployment) -> None:
    settings = deployment.change("[intake]\ntolerate = 0.9\n").settings
    news = two_days(settings)
    write_feedback(settings, [feedback("8", at=NOW + HOUR), feedback("late", at=NOW + DAY + HOUR)], name="2025-05-01/b")
    first = news()
    assert (first.full, first.events, first.rejected) == ("", 5, {"occurred_at: in the future": 1})
    for days in (2, 3):
        later = fold(settings, as_of=NOW + days * DAY, now=NOW + days * DAY)
        assert (later.full, later.events) == ("", 6)


def test_the_prior_follows_from_the_state_as_from_the_snapshots(deployment: Deployment) -> None:
    settings = deployment.settings
    two_days(settings)()
    fast = population_prior(settings, as_of=NOW + 2 * DAY)
    shutil.rmtree(settings.data_path / "fold")
    assert fast == population_prior(settings, as_of=NOW + 2 * DAY)


def test_snapshots_are_kept_compact_and_answer_for_later_times_as_before(deployment: Deployment) -> None:
    settings = deployment.change("[retention]\nsnapshot_days = 2.0\n").settings
    for day in range(6):
        write_feedback(settings, [feedback(f"e{day}", at=NOW + day * DAY - MINUTE, user_id=f"u{day % 3}")], name=f"a{day}")
        fold(settings, as_of=NOW + day * DAY, now=NOW + day * DAY)
    folder = settings.feature_repo_path / names.CLUSTER_REWARDS_PATH
    kept = {file.name for file in folder.glob("2*.parquet")}
    assert kept == {timed_file(folder, NOW + day * DAY).name for day in (3, 4, 5)}
    base = pq.read_table(timed_file(folder, NOW + 3 * DAY)).to_pylist()
    assert [(row[names.JOIN_KEY], row[names.AS_OF]) for row in base] == [("u0", NOW + 3 * DAY), ("u1", NOW + DAY), ("u2", NOW + 2 * DAY)]
    assert [row[names.REWARDS_GENERATION] for row in base] == [4, 2, 3]
