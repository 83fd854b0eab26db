"""Feedback on its way in: taken, refused with a reason, or pushed back; never lost without a word."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import pytest
import redis

from bandit.errors import BacklogFullError, DependencyUnavailableError, InvalidSettingError, Status
from bandit.records import Feedback
from bandit.settings.load import DEFAULT_FILE
from feature_repo import names
from feature_repo.connection import client_of
from feature_repo.keys import partition
from query_rewards import main
from serving.feedback_log import FeedbackLog, Recorded, RejectedEvent
from tests.conftest import Deployment
from tests.tables_made import HOUR, KEYS, feedback
from training.deployment import create
from training.local_redis import URL_VARIABLE, local_redis


def now() -> int:
    return time.time_ns() // 1000


def events_of(count: int, *, at: int | None = None) -> list[Feedback]:
    return [feedback(f"e{number}", at=at or now() - HOUR, user_id=f"u{number}") for number in range(count)]


def waiting(deployment: Deployment) -> list[Feedback]:
    """Every event in the streams, by id."""
    client, found = deployment.redis, []
    for key in client.scan_iter(KEYS.every_partition.feedback, count=1000):
        for _, fields in client.xrange(key):
            event = msgspec.msgpack.decode(fields[names.RECORD_FIELD.encode()], type=Feedback)
            assert key.decode() == KEYS.of_user(event.user_id).feedback
            found.append(event)
    return sorted(found, key=lambda event: event.event_id)


@pytest.fixture
def log(deployment: Deployment) -> Any:
    with FeedbackLog.open(deployment.settings_file) as opened:
        yield opened


# -- taken ------------------------------------------------------------------------------------------------------------------------


def test_events_are_appended_to_the_partition_of_their_user(deployment: Deployment, log: FeedbackLog) -> None:
    events = events_of(2500)  # more than one pipeline
    assert log.record(events) == Recorded(accepted=2500, durable=0, rejected=[])
    assert waiting(deployment) == sorted(events, key=lambda event: event.event_id)


def test_records_mappings_and_json_are_the_same_event(deployment: Deployment, log: FeedbackLog) -> None:
    (event,) = events_of(1)
    fields = msgspec.structs.asdict(event)
    given = [event, fields, MappingProxyType(fields), msgspec.json.encode(event), fields | {"another field": [1]}]
    assert log.record(given) == Recorded(accepted=5, durable=0, rejected=[])
    assert waiting(deployment) == [event] * 5


def test_nothing_recorded_is_nothing_taken(deployment: Deployment, log: FeedbackLog) -> None:
    assert log.record([]) == Recorded(accepted=0, durable=0, rejected=[])
    assert deployment.redis.dbsize() == 0


# -- refused ----------------------------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[Any, str]] = {
    "no JSON": (b"{", "truncated"),
    "empty": (b"", "truncated"),
    "no UTF-8": (b'{"event_id": "\xff"}', "utf-8"),
    "a list": (b"[]", "Expected `object`, got `array`"),
    "nested deep": (b'{"x":' + b"[" * 8000, "recursion"),
    "10 MB": (b'{"event_id": "' + b"x" * 10 * 1024 * 1024 + b'"}', "bytes, expected at most 8192"),
    "a mapping without ids": ({"action": "repin"}, "missing required field `event_id`"),
    "nothing": (None, "Expected `object`, got `null`"),
    "a number": (5, "Expected `object`, got `int`"),
    "a number for an id": (feedback("bad", at=0, user_id=5), "user_id"),  # type: ignore[arg-type]
    "no text for an action": (feedback("bad", at=0, action=["repin"]), "action"),  # type: ignore[arg-type]
    "a fraction for a time": (feedback("bad", at=0.5), "occurred_at"),  # type: ignore[arg-type]
    "a time beyond 64 bits": (feedback("bad", at=2**64), "occurred_at"),
    "unknown action": (feedback("bad", at=0, action="bookmark"), "action: expected one of"),
    "no user": (feedback("bad", at=0, user_id=""), "user_id: empty"),
    "control characters": (feedback("bad", at=0, cluster_id="a\0b"), "cluster_id: control characters"),
    "an id of 4 KB": (feedback("bad", at=0, item_id="x" * 4096), "item_id: 4096 characters"),
    "no time": (feedback("bad", at=0), "occurred_at: 0 is no time"),
    "too old": (feedback("bad", at=1), "occurred_at: 1 is older than the window of 48 hours"),
    "future": (feedback("bad", at=2**62), "is in the future"),
}


@pytest.mark.parametrize(("bad", "reason"), BAD.values(), ids=BAD)
def test_what_cannot_be_counted_is_refused_with_its_place_and_a_reason_and_the_others_are_taken(
    deployment: Deployment, log: FeedbackLog, bad: Any, reason: str
) -> None:
    before, after = events_of(2)
    recorded = log.record([before, bad, after])
    assert recorded.accepted == 2
    (rejected,) = recorded.rejected
    assert rejected.index == 1
    assert reason in rejected.reason
    assert len(rejected.reason) < 1200
    assert rejected.event_id == ("bad" if isinstance(bad, Feedback) else "")
    assert waiting(deployment) == [before, after]


def test_a_mapping_that_is_refused_is_named_by_its_id(log: FeedbackLog) -> None:
    rejected = log.record([{"event_id": "x" * 5000}, {"event_id": 7}, {"event_id": "seven"}]).rejected
    assert [one.event_id for one in rejected] == ["x" * 256, "", "seven"]


def test_only_bad_events_need_no_redis(deployment: Deployment) -> None:
    away = deployment.settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    with FeedbackLog(client_of(away.redis_url, timeout=1.0), away) as log:
        assert log.record([b"{"]).rejected == [RejectedEvent(index=0, event_id="", reason="Input data was truncated")]


def test_times_are_judged_by_the_time_that_is_given(log: FeedbackLog) -> None:
    long_ago = 1_700_000_000_000_000
    assert log.record(events_of(1, at=long_ago), now=long_ago + HOUR).accepted == 1
    assert log.record(events_of(1, at=long_ago)).accepted == 0


# -- durable ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fsync", "since"), [("always", (7, 0, 0)), ("everysec", (7, 4, 6))])
def test_accepted_is_durable_only_where_this_server_can_promise_it(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, fsync: str, since: tuple[int, ...]
) -> None:
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    with local_redis(options=("--appendonly", "yes", "--appendfsync", fsync)) as url:
        settings = deployment.settings.model_copy(update={"redis_url": url})
        client = client_of(url, timeout=5.0)
        version = tuple(int(part) for part in client.info("server")["redis_version"].split("."))
        with FeedbackLog(client, settings) as log:
            assert log.record(events_of(3)) == Recorded(accepted=3, durable=3 if version >= since else 0, rejected=[])


# -- back-pressure ----------------------------------------------------------------------------------------------------------------


def full(deployment: Deployment) -> Deployment:
    """Five events may wait in each partition, and five of `u1` do."""
    small = deployment.change("[stream]\nmax_backlog = 5")
    with FeedbackLog.open(small.settings_file) as log:
        log.record([feedback(f"first{number}", at=now(), user_id="u1") for number in range(5)])
    return small


def test_a_full_backlog_pushes_back_and_nothing_of_the_call_is_taken(deployment: Deployment) -> None:
    small = full(deployment)
    before, started = waiting(small), time.monotonic()
    with FeedbackLog.open(small.settings_file) as log, pytest.raises(BacklogFullError) as raised:
        log.record([*events_of(3), feedback("more", at=now(), user_id="u1")], wait_seconds=0.15)
    assert 0.15 <= time.monotonic() - started < 2.0
    assert (raised.value.partition, raised.value.waiting, raised.value.limit) == (partition("u1"), 5, 5)
    assert waiting(small) == before


def test_other_partitions_are_not_held_up(deployment: Deployment) -> None:
    small = full(deployment)
    other = next(f"u{number}" for number in range(2, 9) if partition(f"u{number}") != partition("u1"))
    with FeedbackLog.open(small.settings_file) as log:
        assert log.record([feedback("other", at=now(), user_id=other)], wait_seconds=0.0).accepted == 1


def test_a_call_waits_and_is_taken_when_room_appears(deployment: Deployment) -> None:
    small = full(deployment)
    timer = threading.Timer(0.15, lambda: small.redis.xtrim(KEYS.of_user("u1").feedback, maxlen=2, approximate=False))
    timer.start()
    started = time.monotonic()
    with FeedbackLog.open(small.settings_file) as log:
        assert log.record([feedback("more", at=now(), user_id="u1")], wait_seconds=20.0).accepted == 1
    assert 0.1 <= time.monotonic() - started < 10.0
    timer.join()
    assert [event.event_id for event in waiting(small)] == ["first3", "first4", "more"]


# -- away -------------------------------------------------------------------------------------------------------------------------


def test_a_redis_that_is_away_is_said_without_its_password(deployment: Deployment) -> None:
    away = deployment.settings.model_copy(update={"redis_url": "redis://:secret@127.0.0.1:1/0"})
    with FeedbackLog(client_of(away.redis_url, timeout=1.0), away) as log, pytest.raises(DependencyUnavailableError) as raised:
        log.record(events_of(1))
    assert "redis://127.0.0.1:1/0" in str(raised.value)
    assert "secret" not in str(raised.value)


def test_a_redis_that_refuses_a_write_is_said_and_recording_again_takes_everything(
    deployment: Deployment, log: FeedbackLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute, calls = redis.client.Pipeline.execute, 0

    def fails_once(pipeline: redis.client.Pipeline, *, raise_on_error: bool = True) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:  # room, the first thousand, and then
            raise redis.ConnectionError("gone")
        return execute(pipeline, raise_on_error)

    events = events_of(1500)
    monkeypatch.setattr(redis.client.Pipeline, "execute", fails_once)
    with pytest.raises(DependencyUnavailableError, match="gone"):
        log.record(events)
    assert log.record(events).accepted == 1500
    assert {event.event_id for event in waiting(deployment)} == {event.event_id for event in events}


def test_settings_that_do_not_exist_are_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match="query-rewards init"):
        FeedbackLog.open(tmp_path / "none.toml")


# -- the command line -------------------------------------------------------------------------------------------------------------


def status(arguments: list[str]) -> object:
    """How the program ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["query-rewards", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    return ended.value.code


@pytest.fixture
def lines(deployment: Deployment) -> Path:
    """A file of four lines, of which the second and the fourth are bad."""
    file = deployment.folder / "events.jsonl"
    good, other = events_of(2)
    bad = feedback("bad", at=now(), action="bookmark")
    file.write_bytes(b"\n".join([msgspec.json.encode(good), b"{", msgspec.json.encode(other), msgspec.json.encode(bad), b""]))
    return file


def test_refused_events_are_named_by_their_line_and_the_others_are_taken(
    deployment: Deployment, lines: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.verbs._LINES_PER_CALL", 3)  # lines are counted across batches
    assert status(["feedback", str(lines), "--settings", str(deployment.settings_file), "--json"]) == Status.FAILED
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"accepted": 2, "durable": 0, "rejected": 2}
    first, second = printed.err.splitlines()
    assert first == f"{lines}, line 2: Input data was truncated"
    assert second.startswith(f"{lines}, line 4: action: expected one of")
    assert [event.event_id for event in waiting(deployment)] == ["e0", "e1"]


def test_a_file_of_good_events_ends_well(deployment: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    file = deployment.folder / "events.jsonl"
    file.write_bytes(b"".join(msgspec.json.encode(event) + b"\n" for event in events_of(3)))
    assert status(["feedback", str(file), "--settings", str(deployment.settings_file)]) == 0
    assert capsys.readouterr().out.split() == ["accepted", "3", "durable", "0", "rejected", "0"]


def test_a_file_that_is_not_there_fails_and_is_named(deployment: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    missing = deployment.folder / "none.jsonl"
    assert status(["feedback", str(missing), "--settings", str(deployment.settings_file)]) == Status.FAILED
    assert capsys.readouterr().err == f"query-rewards: {missing}: cannot be read: No such file or directory\n"


def test_settings_that_are_not_there_are_a_matter_of_usage(tmp_path: Path, lines: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(["feedback", str(lines), "--settings", str(tmp_path / "none.toml")]) == Status.USAGE
    assert str(tmp_path / "none.toml") in capsys.readouterr().err


def test_a_redis_that_is_away_has_an_exit_status_of_its_own(tmp_path: Path, lines: Path, capsys: pytest.CaptureFixture[str]) -> None:
    create(tmp_path / "away", 'redis_url = "redis://:secret@127.0.0.1:1/0"\n')
    assert status(["feedback", str(lines), "--settings", str(tmp_path / "away" / DEFAULT_FILE)]) == Status.UNAVAILABLE
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[-1].startswith("query-rewards: Redis at redis://127.0.0.1:1/0 is unavailable: ")
    assert "secret" not in printed.err


def test_a_full_backlog_has_the_same_exit_status(
    deployment: Deployment, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = full(deployment)
    file = small.folder / "events.jsonl"
    file.write_bytes(msgspec.json.encode(feedback("more", at=now(), user_id="u1")))
    monkeypatch.setitem(FeedbackLog.record.__kwdefaults__, "wait_seconds", 0.0)
    assert status(["feedback", str(file), "--settings", str(small.settings_file)]) == Status.UNAVAILABLE
    assert "record the events again" in capsys.readouterr().err


def test_query_rewards_feedback_is_the_same_program(deployment: Deployment, lines: Path) -> None:
    command = [sys.executable, "-m", "query_rewards", "feedback", str(lines), "--settings", str(deployment.settings_file), "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert ran.returncode == Status.FAILED, ran.stderr
    assert json.loads(ran.stdout) == {"accepted": 2, "durable": 0, "rejected": 2}
    assert "line 2: " in ran.stderr
    assert "line 4: " in ran.stderr
