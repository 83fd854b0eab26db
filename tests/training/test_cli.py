"""The command line: what a scheduler and its log see of every verb."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from bandit.errors import Status
from bandit.records import Feedback
from query_rewards import main
from serving import QuerySelector
from tests.conftest import Deployment
from tests.leases import owned_elsewhere
from tests.tables_made import (
    DAY,
    HOUR,
    KEYS,
    MINUTE,
    NOW,
    decision,
    feedback,
    naive,
    unit_vectors,
    write_decisions,
    write_embeddings,
    write_feedback,
    write_history,
)

VERBS = ("init", "cluster", "fold", "materialize", "feedback", "stream", "join", "train", "promote", "rollback", "retrain")
VERBS += ("evaluate", "experiment", "serve")
USERS = [f"u{number}" for number in range(30)]
CLUSTERED, DECIDED, TRAINED = NOW - 3 * DAY, NOW - 2 * DAY, NOW  # the times of the story below


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        content = json.loads(self.out)
        assert isinstance(content, dict)
        return content


Run = Callable[..., Ran]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The program, in this process: importing it anew for each verb would take seconds."""

    def ran(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["query-rewards", *(str(argument) for argument in arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capfd.readouterr()
        code = ended.value.code
        return Ran(status=code if isinstance(code, int) else int(code is not None), out=captured.out, err=captured.err)

    return ran


def iso(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / 1e6, UTC).isoformat()


def assert_one_line(ran: Ran, status: int, *places: str) -> None:
    """An error is one line on stderr that names the place, nothing on stdout, no traceback, and an exit status that says the kind."""
    assert ran.status == status, ran.err
    assert ran.out == ""
    lines = ran.err.splitlines()
    assert len(lines) == 1, ran.err
    assert lines[0].startswith("query-rewards: ")
    for place in places:
        assert place in lines[0]


@pytest.fixture
def shop(learning: Deployment) -> Deployment:
    """A deployment with 30 users' histories, and a deadline that a busy machine keeps."""
    rows = [
        (user, f"i{(7 * number + step) % 40}", "repin", CLUSTERED - (step + 1) * DAY)
        for number, user in enumerate(USERS)
        for step in range(6)
    ]
    write_history(learning.folder / "history.parquet", rows)
    write_embeddings(learning.folder / "embeddings.parquet", [f"i{number}" for number in range(40)], unit_vectors(40, 12))
    return learning.change("[serving]\ndeadline_ms = 5000.0")


def feed(shop: Deployment) -> list[Feedback]:
    """One request of every user, and what the feed reports back."""
    events = []
    with QuerySelector.open(shop.settings_file) as selector:
        for number, user in enumerate(USERS):
            selection = selector.select(user, 3, now=DECIDED + number, seed=number)
            assert len(selection.queries) == 3, selection.reason
            for query in selection.queries:
                for action in ["impression", "repin"] if query.item_id.endswith("3") else ["impression"]:
                    fields = {"decision_id": selection.decision_id, "cluster_id": query.cluster_id, "query_id": query.item_id}
                    events.append(feedback(f"e{len(events)}", at=DECIDED + HOUR, user_id=user, action=action, **fields))
    return events


def content(folder: Path) -> dict[str, bytes]:
    """Every file that holds data; the registries of Feast and MLflow note when they were used, so they are left out."""
    files = [*folder.rglob("*.parquet"), *folder.rglob("model.msgpack"), *folder.rglob("*.npy")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def in_redis(deployment: Deployment) -> dict[bytes, Any]:
    """Every key but the claim, which is another one after each run; of a hash its fields, whose order moves when it is read."""
    client = deployment.redis
    keys = [key for key in client.scan_iter() if key != KEYS.deployment.encode()]
    return {key: client.hgetall(key) if client.type(key) == b"hash" else client.dump(key) for key in keys}


def test_the_whole_loop_verb_by_verb(shop: Deployment, run: Run) -> None:
    def step(verb: str, at: int | None, *more: object) -> dict[str, Any]:
        ran = run(verb, "--settings", shop.settings_file, "--json", *(["--as-of", iso(at)] if at else []), *more)
        assert ran.status == 0, ran.err
        assert ran.err == "", f"{verb} writes to stderr although that is no terminal"
        return ran.json

    files = ("--history", shop.folder / "history.parquet", "--embeddings", shop.folder / "embeddings.parquet")
    assert step("cluster", CLUSTERED, *files)["users"] == 30
    assert step("materialize", CLUSTERED)["written"] == {"user_clusters": 30, "cluster_rewards": 0}
    events = feed(shop)
    write_feedback(shop.settings, events)
    folded = step("fold", TRAINED)
    assert (folded["users"], folded["as_of"]) == (30, TRAINED)
    assert folded["events"] == len(events)  # the decisions are still in Redis
    assert step("materialize", TRAINED)["written"] == {"user_clusters": 0, "cluster_rewards": 30}
    joined = step("join", TRAINED)
    assert (joined["decisions"], joined["impressions"], joined["dead_letters"]) == (30, 90, 0)
    assert step("train", TRAINED)["version"] == "1"
    assert step("promote", None) == {"version": "1", "sha256": step("train", TRAINED)["sha256"], "before": ""}
    with QuerySelector.open(shop.settings_file) as selector:
        assert selector.model_version == "1"
        assert selector.select("u1", 2, now=TRAINED).policy == "bandit"


def test_retrain_twice_changes_nothing(shop: Deployment, run: Run) -> None:
    arguments = ("--settings", shop.settings_file)
    files = ("--history", shop.folder / "history.parquet", "--embeddings", shop.folder / "embeddings.parquet")
    assert run("cluster", *arguments, *files, "--as-of", iso(CLUSTERED)).status == 0
    assert run("materialize", *arguments, "--as-of", iso(CLUSTERED)).status == 0
    write_feedback(shop.settings, feed(shop))
    first = run("retrain", *arguments, "--json", "--as-of", iso(TRAINED))
    assert first.status == 0, first.err
    assert (first.json["decisions_moved"], first.json["rows_materialized"], first.json["promoted"]["before"]) == (30, 30, "")
    on_disk, online = content(shop.folder), in_redis(shop)
    assert len(on_disk) >= 7
    again = run("retrain", *arguments, "--json", "--as-of", iso(TRAINED))
    assert again.status == 0, again.err
    assert (again.json["decisions_moved"], again.json["rows_materialized"], again.json["promoted"]["before"]) == (0, 0, "1")
    for name in ("folded", "joined"):
        assert again.json[name] == first.json[name]
    assert again.json["trained"]["version"] == first.json["trained"]["version"] == "1"
    assert content(shop.folder) == on_disk
    assert in_redis(shop) == online
    later = run("retrain", *arguments, "--json", "--as-of", iso(TRAINED + HOUR))
    assert later.status == 0, later.err
    assert (later.json["folded"]["users"], later.json["trained"]["version"]) == (0, "1")
    assert in_redis(shop) == online


def test_retrain_with_nothing_to_learn_from_says_so_and_ends_with_3(learning: Deployment, run: Run) -> None:
    ran = run("retrain", "--settings", learning.settings_file, "--json", "--as-of", iso(NOW))
    assert ran.status == Status.NOT_PROMOTED
    assert ran.json["promoted"] is None
    assert "the feedback log is empty" in ran.json["not_promoted"]
    assert ran.err.splitlines()[-1].startswith("query-rewards: the feedback log is empty")
    made = decision(1, at=NOW - 2 * DAY)
    write_decisions(learning.settings, [made])
    write_feedback(learning.settings, [feedback("1", at=NOW - 2 * DAY + MINUTE, decision_id=made.decision_id)])
    ran = run("retrain", "--settings", learning.settings_file, "--json", "--as-of", iso(NOW))
    assert ran.status == Status.NOT_PROMOTED
    assert (ran.json["joined"]["rows"], ran.json["trained"], ran.json["promoted"]) == (1, None, None)
    assert "training.minimum_rows" in ran.json["not_promoted"]


def test_without_json_a_table_for_people(deployment: Deployment, run: Run) -> None:
    write_feedback(deployment.settings, [feedback("1", at=NOW)])
    ran = run("fold", "--settings", deployment.settings_file, "--as-of", iso(NOW))
    assert (ran.status, ran.err) == (0, "")
    shown = dict(line.split(maxsplit=1) for line in ran.out.splitlines() if len(line.split()) > 1)
    assert (shown["users"].strip(), shown["events"].strip()) == ("1", "1")


# -- init -------------------------------------------------------------------------------------------------------------------------


def test_init_writes_what_the_other_verbs_need_and_overwrites_nothing(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "place"
    first = run("init", folder)
    files = [folder / name for name in ("query_rewards.toml", "feature_repo/feature_store.yaml", "feature_repo/definitions.py")]
    assert (first.status, first.err) == (0, "")
    assert sorted(first.out.split()) == sorted(str(file) for file in files)
    for number, file in enumerate(files):
        file.write_text(f"mine {number}")
    second = run("init", folder)
    assert (second.status, second.out) == (0, "")
    assert [file.read_text() for file in files] == ["mine 0", "mine 1", "mine 2"]
    files[1].unlink()
    third = run("init", folder)
    assert third.out.split() == [str(files[1])]
    assert files[0].read_text() == "mine 0"


def test_init_and_the_other_verbs_work_in_the_current_folder(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("init").status == 0
    assert_one_line(run("fold"), Status.FAILED, "the feedback log is empty")


# -- failures ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in {"init", "feedback", "serve"}])
def test_an_unknown_setting_is_a_usage_error_that_names_the_nearest(deployment: Deployment, run: Run, verb: str) -> None:
    file = deployment.settings_file
    file.write_text(
        file.read_text().replace("repin = 1.0", "repin = 1.0\n[policy]\nexploration_bugdet = 0.1").replace('[policy]\nname = "bandit"', "")
    )
    some = ("--history", "h", "--embeddings", "e") if verb == "cluster" else ()
    assert_one_line(run(verb, "--settings", file, *some), Status.USAGE, str(file), "exploration_bugdet", "policy.exploration_budget")


def test_an_unknown_variable_is_a_usage_error(deployment: Deployment, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUERY_REWARDS_POLICY__NAMES", "uniform")
    assert_one_line(
        run("fold", "--settings", deployment.settings_file), Status.USAGE, "QUERY_REWARDS_POLICY__NAMES", "QUERY_REWARDS_POLICY__NAME"
    )


def test_a_settings_file_that_is_not_there_is_a_usage_error(run: Run, tmp_path: Path) -> None:
    assert_one_line(run("fold", "--settings", tmp_path / "none.toml"), Status.USAGE, str(tmp_path / "none.toml"), "query-rewards init")


@pytest.mark.parametrize(
    ("text", "said"), [("yesterday", "yesterday"), ("2025-05-01T00:00:00", "time zone"), ("2099-01-01T00:00:00+00:00", "in the future")]
)
def test_a_bad_reference_time_is_a_usage_error(deployment: Deployment, run: Run, text: str, said: str) -> None:
    write_feedback(deployment.settings, [feedback("1", at=NOW)])
    assert_one_line(run("fold", "--settings", deployment.settings_file, "--as-of", text), Status.USAGE, "--as-of", said)


@pytest.mark.parametrize("arguments", [(), ("no-such-verb",), ("fold", "--no-such-option"), ("cluster",)], ids=str)
def test_wrong_arguments_are_a_usage_error(run: Run, arguments: tuple[str, ...]) -> None:
    ran = run(*arguments)
    assert ran.status == Status.USAGE
    assert "Traceback" not in ran.err + ran.out


@pytest.mark.parametrize(("verb", "place"), [("promote", "query-rewards train"), ("rollback", "no earlier champion")])
def test_nothing_to_promote_ends_with_3(learning: Deployment, run: Run, verb: str, place: str) -> None:
    assert_one_line(run(verb, "--settings", learning.settings_file), Status.NOT_PROMOTED, place)


@pytest.mark.parametrize("verb", ["join", "retrain"])
def test_redis_away_ends_with_4(deployment: Deployment, run: Run, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.setenv("QUERY_REWARDS_REDIS_URL", "redis://user:secret@127.0.0.1:1/3")
    ran = run(verb, "--settings", deployment.settings_file)
    assert_one_line(ran, Status.UNAVAILABLE, "Redis at redis://127.0.0.1:1/3 is unavailable")
    assert "secret" not in ran.err


def test_materialize_with_redis_away_ends_with_4(shop: Deployment, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ("--history", shop.folder / "history.parquet", "--embeddings", shop.folder / "embeddings.parquet")
    assert run("cluster", "--settings", shop.settings_file, *files, "--as-of", iso(CLUSTERED)).status == 0
    monkeypatch.setenv("QUERY_REWARDS_REDIS_URL", "redis://127.0.0.1:1/3")
    assert_one_line(
        run("materialize", "--settings", shop.settings_file), Status.UNAVAILABLE, "Redis at redis://127.0.0.1:1/3 is unavailable"
    )


def test_a_bad_table_ends_with_1_naming_the_place(deployment: Deployment, run: Run) -> None:
    file = write_feedback(deployment.settings, [feedback("1", at=NOW), feedback("2", at=NOW, action="bookmark")])
    told = str(file.parent), "1 of 2 rows", "unknown action", "data/rejected"
    assert_one_line(run("fold", "--settings", deployment.settings_file), Status.FAILED, *told)
    pq.write_table(naive(pq.read_table(file), "occurred_at"), file)
    assert_one_line(
        run("fold", "--settings", deployment.settings_file), Status.FAILED, str(file), "occurred_at", "time zone", "data/quarantine"
    )


def test_a_step_that_runs_already_ends_with_1_naming_the_owner(deployment: Deployment, run: Run) -> None:
    write_feedback(deployment.settings, [feedback("1", at=NOW)])
    with owned_elsewhere(deployment.settings.data_path, "join"):
        assert_one_line(run("fold", "--settings", deployment.settings_file), Status.FAILED, "'join' has been running", str(os.getpid()))
    assert run("fold", "--settings", deployment.settings_file).status == 0


def test_a_failed_step_frees_its_lock(deployment: Deployment, run: Run) -> None:
    for _ in range(2):
        assert_one_line(run("fold", "--settings", deployment.settings_file), Status.FAILED, "the feedback log is empty")


# -- the program itself -----------------------------------------------------------------------------------------------------------


def program(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The installed command, as a scheduler starts it."""
    command = shutil.which("query-rewards", path=str(Path(sys.executable).parent))
    assert command, "the package is not installed in this environment"
    return subprocess.run(
        [command, *(str(argument) for argument in arguments)], capture_output=True, text=True, cwd=cwd, check=False, timeout=180
    )


def test_help_names_every_verb(tmp_path: Path) -> None:
    done = program("--help", cwd=tmp_path)
    assert done.returncode == 0
    for verb in VERBS:
        assert f" {verb} " in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(("verb", "module", "extra"), [("serve", "uvicorn", "http"), ("init", "pyarrow", "training")])
def test_a_verb_whose_extra_is_not_installed_says_which(tmp_path: Path, verb: str, module: str, extra: str) -> None:
    code = f"import sys; sys.modules[{module!r}] = None; sys.argv = ['query-rewards', {verb!r}]; import query_rewards; query_rewards.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False, timeout=180)
    assert_one_line(
        Ran(status=done.returncode, out=done.stdout, err=done.stderr), Status.USAGE, f"{verb} needs pip install 'query-rewards[{extra}]'"
    )


def test_the_installed_program_retrains_in_a_folder_that_holds_a_feature_repo(learning: Deployment) -> None:
    decisions = [decision(number, at=NOW - 2 * DAY + number) for number in range(60)]  # a fifth of which is held out
    events = [feedback(f"{made.seed}", at=made.decided_at + MINUTE, decision_id=made.decision_id) for made in decisions]
    write_feedback(learning.settings, events)
    write_decisions(learning.settings, decisions)
    done = program("retrain", "--json", "--as-of", iso(NOW), cwd=learning.folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["promoted"]["version"] == "1"
    assert learning.redis.get(KEYS.champion)
    assert not done.stderr
