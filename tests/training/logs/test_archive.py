"""Decisions and feedback on their way from Redis to the Parquet logs: none is lost, none counts twice."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis

from bandit.errors import DependencyUnavailableError
from bandit.records import Decision, Feedback
from bandit.rewards.feedback import MAX_RECORD_BYTES
from bandit.settings.load import Settings
from feature_repo import names
from feature_repo.connection import client_of
from feature_repo.keys import PARTITIONS, partition
from serving.decision_log import append_command
from serving.feedback_log import FeedbackLog
from serving.redis_io.breaker import CircuitBreaker
from serving.redis_io.connections import Connections
from tests.conftest import Deployment
from tests.tables_made import DAY, HOUR, KEYS, MINUTE, NOW, decision, feedback, feedback_table, write_feedback
from training.features.fold import fold
from training.logs import archive as step
from training.logs.archive import compact, move_logs
from training.logs.schemas import DEAD_LETTERS, DECISIONS, FEEDBACK
from training.models.join import join

MADE = NOW - 2 * DAY
DRAWN = [("a", "q1"), ("b", "q2"), ("a", "q3")]


def log(settings: Settings, decisions: list[Decision]) -> None:
    """Log as serving does."""
    wire = Connections(settings.redis_url, CircuitBreaker(failures=1, pause=0.0), most=1, patience=5.0)
    commands, now = [append_command(made, KEYS) for made in decisions], time.monotonic()
    with wire.turn(now + 5.0, now + 5.0) as turn:
        assert all(isinstance(reply, bytes) for reply in turn.exchange(commands, now + 5.0))
    wire.close()


def many(count: int, *, start: int = 0) -> list[Decision]:
    return [decision(number, at=MADE + number, user_id=f"u{number}", drawn=DRAWN) for number in range(start, start + count)]


def report(settings: Settings, events: list[Feedback], *, now: int) -> None:
    """Report as a feed does."""
    with FeedbackLog(client_of(settings.redis_url, timeout=5.0), settings) as writer:
        assert writer.record(events, now=now).accepted == len(events)


def parquet_files(settings: Settings, name: str = "decisions") -> list[Path]:
    return sorted((settings.data_path / name).rglob("*.parquet"))


def moved_table(settings: Settings) -> pa.Table:
    files = parquet_files(settings)
    return pa.concat_tables([pq.read_table(file) for file in files]) if files else DECISIONS.empty_table()


def moved_feedback(settings: Settings) -> pa.Table:
    files = parquet_files(settings, "feedback")
    return pa.concat_tables([pq.read_table(file) for file in files]) if files else FEEDBACK.empty_table()


def dead_letters(settings: Settings) -> list[dict[str, Any]]:
    files = parquet_files(settings, "dead_letters/stream")
    tables = [pq.read_table(file) for file in files]
    assert all(table.schema.equals(DEAD_LETTERS) for table in tables)
    return [row for table in tables for row in table.to_pylist()]


def ids(settings: Settings) -> list[str]:
    return sorted(moved_table(settings)["decision_id"].to_pylist())


def left_in_redis(deployment: Deployment) -> int:
    client = deployment.redis
    return sum(client.xlen(key) for of in map(KEYS.partition, range(PARTITIONS)) for key in (of.decisions, of.feedback))


def test_every_field_arrives(deployment: Deployment) -> None:
    made = decision(
        3,
        at=MADE + 123_457,
        user_id="Zoë \N{SNOWMAN}",
        drawn=DRAWN,
        policy="bandit",
        model_version="12",
        seed=2**63 - 1,
        scores=[0.1 + 0.2, -1e-300],
        quotas=[2.0, 1.0],
        context={"surface": "home", "country": "é"},
        degraded=True,
    )
    log(deployment.settings, [made])
    assert move_logs(deployment.settings).decisions == 1
    table = moved_table(deployment.settings)
    assert table.schema.equals(DECISIONS)
    (row,) = table.to_pylist()
    for name in (
        "decision_id",
        "user_id",
        "policy",
        "model_version",
        "k",
        "seed",
        "feature_version",
        "cluster_ids",
        "scores",
        "quotas",
        "caps",
    ):
        assert row[name] == getattr(made, name), name
    assert row["degraded"] is True
    assert dict(row["context"]) == made.context
    assert row["queries"] == [msgspec.to_builtins(query) for query in made.queries]
    assert table["decided_at"].cast(pa.int64()).to_pylist() == [made.decided_at]
    np.testing.assert_array_equal(np.array(row["features"], np.float32), made.feature_matrix().ravel())


def test_all_partitions_are_moved_and_emptied(deployment: Deployment) -> None:
    logged = many(400)
    assert len({partition(made.user_id) for made in logged}) > 150
    log(deployment.settings, logged)
    assert left_in_redis(deployment) == 400
    assert move_logs(deployment.settings).decisions == 400
    assert ids(deployment.settings) == sorted(made.decision_id for made in logged)
    assert left_in_redis(deployment) == 0


def test_a_second_run_moves_nothing_twice(deployment: Deployment) -> None:
    log(deployment.settings, many(20))
    move_logs(deployment.settings)
    files = {file: file.read_bytes() for file in parquet_files(deployment.settings)}
    assert files
    assert move_logs(deployment.settings).decisions == 0
    assert {file: file.read_bytes() for file in parquet_files(deployment.settings)} == files
    log(deployment.settings, many(5, start=20))
    assert move_logs(deployment.settings).decisions == 5
    assert len(ids(deployment.settings)) == len(set(ids(deployment.settings))) == 25


def test_nothing_logged_is_nothing_moved(deployment: Deployment) -> None:
    assert move_logs(deployment.settings).decisions == 0
    assert not (deployment.settings.data_path / "decisions").exists()


def test_one_stream_longer_than_a_read_is_moved_whole(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "_ENTRIES_PER_READ", 7)
    log(deployment.settings, [decision(number, at=MADE + number, user_id="one") for number in range(50)])
    assert move_logs(deployment.settings).decisions == 50
    assert len(set(ids(deployment.settings))) == 50
    assert left_in_redis(deployment) == 0


def test_files_hold_a_bounded_number_of_rows(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "_ROWS_PER_FILE", 16)
    log(deployment.settings, many(50))
    assert move_logs(deployment.settings).decisions == 50
    rows = sorted(pq.read_metadata(file).num_rows for file in parquet_files(deployment.settings))
    assert rows == [2, 16, 16, 16]
    assert len(set(ids(deployment.settings))) == 50


def test_streams_are_trimmed_only_when_the_file_is_on_disk(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    log(deployment.settings, many(30))
    seen: list[tuple[int, int]] = []
    execute = redis.client.Pipeline.execute

    def watched(pipeline: redis.client.Pipeline) -> object:
        assert {command[0][0] for command in pipeline.command_stack} == {"XTRIM"}
        seen.append((len(ids(deployment.settings)), left_in_redis(deployment)))
        return execute(pipeline)

    monkeypatch.setattr(redis.client.Pipeline, "execute", watched)
    move_logs(deployment.settings)
    assert seen == [(30, 30)]
    assert left_in_redis(deployment) == 0


def test_what_is_logged_while_a_run_writes_its_file_stays_for_the_next(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    write = step.write_table
    early, late = many(30), many(60)[30:]

    def slow(table: pa.Table, file: Path, *, checked: bool) -> None:
        write(table, file)
        log(deployment.settings, late)

    log(deployment.settings, early)
    with monkeypatch.context() as patched:
        patched.setattr(step, "write_table", slow)
        assert move_logs(deployment.settings).decisions == 30
    assert left_in_redis(deployment) == 30
    assert move_logs(deployment.settings).decisions == 30
    assert ids(deployment.settings) == sorted(made.decision_id for made in [*early, *late])


def test_what_is_logged_in_the_same_millisecond_stays_too(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    write, stream = step.write_table, KEYS.of_user("u").decisions
    first, last = decision(1, at=MADE, user_id="u"), decision(2, at=MADE + 1, user_id="u")

    def slow(table: pa.Table, file: Path, *, checked: bool) -> None:
        write(table, file)
        deployment.redis.xadd(stream, {names.RECORD_FIELD: msgspec.msgpack.encode(last)}, id=f"{MADE // 1000 + 1}-4")

    deployment.redis.xadd(stream, {names.RECORD_FIELD: msgspec.msgpack.encode(first)}, id=f"{MADE // 1000 + 1}-3")
    with monkeypatch.context() as patched:
        patched.setattr(step, "write_table", slow)
        assert move_logs(deployment.settings).decisions == 1
    assert move_logs(deployment.settings).decisions == 1
    assert ids(deployment.settings) == [first.decision_id, last.decision_id]


@pytest.mark.parametrize(
    "record", [b"", b"\xc1 not MessagePack", msgspec.msgpack.encode({"decision_id": "1"})], ids=["empty", "noise", "short"]
)
def test_a_malformed_entry_is_buried_with_its_reason_and_the_rest_goes_on(deployment: Deployment, record: bytes) -> None:
    before, after = decision(1, at=MADE, user_id="u"), decision(2, at=MADE + 1, user_id="u")
    log(deployment.settings, [before])
    stream = KEYS.of_user("u").decisions
    entry = deployment.redis.xadd(stream, {names.RECORD_FIELD: record}).decode()
    log(deployment.settings, [after])
    assert move_logs(deployment.settings).decisions == 2
    assert ids(deployment.settings) == sorted([before.decision_id, after.decision_id])
    assert left_in_redis(deployment) == 0
    (row,) = dead_letters(deployment.settings)
    assert (row["stream"], row["entry_id"], row["record"]) == (stream, entry, record)
    assert row["reason"]


def test_only_malformed_entries_are_trimmed_too(deployment: Deployment) -> None:
    deployment.redis.xadd(KEYS.partition(9).decisions, {"other field": b"x"})
    assert move_logs(deployment.settings).decisions == 0
    assert left_in_redis(deployment) == 0


def test_a_record_that_is_no_decision_is_buried_and_the_others_of_its_batch_are_not(deployment: Deployment) -> None:
    broken = msgspec.structs.replace(decision(2, at=MADE, user_id="u", drawn=DRAWN), cluster_ids=[], features=b"")
    log(deployment.settings, [decision(1, at=MADE, user_id="u"), broken])
    assert move_logs(deployment.settings) == step.Moved(decisions=1, dead_letters=1)
    (row,) = dead_letters(deployment.settings)
    assert row["reason"].startswith("features: ")
    assert row["record"] == msgspec.msgpack.encode(broken)


class Killed(Exception):  # noqa: N818 -- not an error of ours: the process is gone
    pass


def joined(settings: Settings, decisions: list[Decision]) -> list[dict[str, object]]:
    """Training rows after every decision got one impression."""
    events = [
        feedback(
            made.decision_id, at=made.decided_at + MINUTE, decision_id=made.decision_id, user_id=made.user_id, cluster_id="a", query_id="q1"
        )
        for made in decisions
    ]
    write_feedback(settings, events)
    result = join(settings, as_of=NOW)
    assert result.decisions == len(decisions)
    return pq.read_table(result.file).to_pylist()


def test_killed_between_write_and_trim_loses_and_doubles_nothing(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    logged = many(40)
    log(deployment.settings, logged[:30])

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(redis.client.Pipeline, "execute", killed)
        with pytest.raises(Killed):
            move_logs(deployment.settings)
    assert left_in_redis(deployment) == 30
    assert len(ids(deployment.settings)) == 30
    log(deployment.settings, logged[30:])
    assert move_logs(deployment.settings).decisions == 40
    assert set(ids(deployment.settings)) == {made.decision_id for made in logged}
    rows = joined(deployment.settings, logged)
    assert len(rows) == 80
    assert sum(row["impressions"] for row in rows) == 40  # type: ignore[misc]


def test_killed_in_the_middle_of_trimming_loses_nothing(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    logged = many(40)
    logged.sort(key=lambda made: -partition(made.user_id))  # the first decision lies in the stream that is trimmed last
    logged = [msgspec.structs.replace(made, decision_id=f"{number:04d}", decided_at=MADE) for number, made in enumerate(logged)]
    log(deployment.settings, logged)
    execute = redis.client.Pipeline.execute

    def half(pipeline: redis.client.Pipeline) -> None:
        del pipeline.command_stack[len(pipeline.command_stack) // 2 :]
        execute(pipeline)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(redis.client.Pipeline, "execute", half)
        with pytest.raises(Killed):
            move_logs(deployment.settings)
    assert 0 < left_in_redis(deployment) < 40
    move_logs(deployment.settings)
    assert set(ids(deployment.settings)) == {made.decision_id for made in logged}
    assert left_in_redis(deployment) == 0


def test_killed_while_writing_leaves_no_file_that_looks_whole(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    log(deployment.settings, many(5))

    def killed(descriptor: int) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("training.logs.writing.os.fsync", killed)
        with pytest.raises(Killed):
            move_logs(deployment.settings)
    assert ids(deployment.settings) == []
    assert left_in_redis(deployment) == 5
    assert move_logs(deployment.settings).decisions == 5
    assert len(set(ids(deployment.settings))) == 5


def test_a_redis_that_is_away_is_said(deployment: Deployment) -> None:
    away = deployment.settings.model_copy(update={"redis_url": "redis://:secret@127.0.0.1:1/0"})
    with pytest.raises(DependencyUnavailableError, match=r"Redis at redis://127\.0\.0\.1:1/0 is unavailable") as raised:
        move_logs(away)
    assert "secret" not in str(raised.value)


# -- feedback ---------------------------------------------------------------------------------------------------------------------


def heard(count: int, *, at: int, start: int = 0) -> list[Feedback]:
    """Events of as many users."""
    return [
        feedback(f"e{number}", at=at + number, user_id=f"u{number}", action=("impression", "repin")[number % 2])
        for number in range(start, start + count)
    ]


def just_now() -> int:
    return time.time_ns() // 1000


def test_feedback_moves_too_and_every_field_arrives(deployment: Deployment) -> None:
    now = just_now()
    events = [
        *heard(300, at=now - HOUR),
        feedback("é", at=now - 7, decision_id="d \N{SNOWMAN}", user_id="Zoë", cluster_id="k", query_id="z", item_id="y", action="hide"),
    ]
    report(deployment.settings, events, now=now)
    log(deployment.settings, many(20))
    assert left_in_redis(deployment) == 321
    assert move_logs(deployment.settings) == step.Moved(decisions=20, feedback=301)
    moved = moved_feedback(deployment.settings)
    assert moved.schema.equals(FEEDBACK)
    assert moved.sort_by("event_id").equals(feedback_table(events).sort_by("event_id"))
    assert left_in_redis(deployment) == 0
    assert move_logs(deployment.settings) == step.Moved()


def test_files_lie_in_a_folder_for_the_day_of_their_arrival(deployment: Deployment) -> None:
    arrived = MADE // 1000
    records = (msgspec.msgpack.encode(feedback("e", at=MADE, user_id="u")), b"noise")
    for number, record in enumerate(records):
        deployment.redis.xadd(KEYS.of_user("u").feedback, {names.RECORD_FIELD: record}, id=f"{arrived}-{number}")
    record = msgspec.msgpack.encode(decision(1, at=MADE, user_id="u"))
    deployment.redis.xadd(KEYS.of_user("u").decisions, {names.RECORD_FIELD: record}, id=f"{arrived}-0")
    move_logs(deployment.settings)
    day = datetime.fromtimestamp(MADE / 1e6, UTC).date().isoformat()
    for name in ("decisions", "feedback", "dead_letters/stream"):
        (file,) = parquet_files(deployment.settings, name)
        assert file.parent == deployment.settings.data_path / name / day


UNCOUNTABLE = {
    "noise": (b"\xc1 not MessagePack", "not a feedback event: "),
    "no record": (b"", "not a feedback event: "),
    "short": (msgspec.msgpack.encode({"event_id": "1"}), "not a feedback event: "),
    "too large": (b"\xff" * (10 * 1024 * 1024), f"{10 * 1024 * 1024} bytes, expected at most {MAX_RECORD_BYTES}"),
    "unknown action": (msgspec.msgpack.encode(feedback("e", at=MADE, action="bookmark")), "action: expected one of "),
    "no user": (msgspec.msgpack.encode(feedback("e", at=MADE, user_id="")), "user_id: empty"),
    "future": (msgspec.msgpack.encode(feedback("e", at=2**60)), f"occurred_at: {2**60} is in the future"),
    "too old": (msgspec.msgpack.encode(feedback("e", at=MADE - 60 * DAY)), f"occurred_at: {MADE - 60 * DAY} is older than "),
}


@pytest.mark.parametrize(("record", "reason"), UNCOUNTABLE.values(), ids=UNCOUNTABLE)
def test_feedback_that_cannot_be_counted_is_buried_with_its_reason_and_the_rest_goes_on(
    deployment: Deployment, record: bytes, reason: str
) -> None:
    stream = KEYS.of_user("u").feedback
    for number, raw in enumerate(
        (msgspec.msgpack.encode(feedback("before", at=MADE)), record, msgspec.msgpack.encode(feedback("after", at=MADE)))
    ):
        deployment.redis.xadd(stream, {names.RECORD_FIELD: raw}, id=f"{MADE // 1000}-{number + 1}")
    assert move_logs(deployment.settings) == step.Moved(feedback=2, dead_letters=1)
    assert moved_feedback(deployment.settings)["event_id"].to_pylist() == ["before", "after"]
    (row,) = dead_letters(deployment.settings)
    assert (row["stream"], row["entry_id"]) == (stream, f"{MADE // 1000}-2")
    assert row["reason"].startswith(reason)
    assert record.startswith(row["record"])
    assert len(row["record"]) == min(len(record), 64 * 1024)
    assert left_in_redis(deployment) == 0


def test_with_a_stream_the_logs_are_the_streams_own(deployment: Deployment) -> None:
    log(deployment.settings, many(5))
    report(deployment.settings, heard(5, at=just_now() - HOUR), now=just_now())
    streaming = deployment.change("[stream]\nenabled = true")
    assert move_logs(streaming.settings) == step.Moved()
    assert left_in_redis(deployment) == 10
    assert parquet_files(deployment.settings) == parquet_files(deployment.settings, "feedback") == []


def test_what_a_stream_once_knew_is_forgotten_when_the_logs_are_moved_without_it(deployment: Deployment) -> None:
    client = deployment.redis
    for number in (0, 255):
        client.hset(KEYS.partition(number).state, "commits", 1)
    move_logs(deployment.settings)
    assert not client.exists(KEYS.partition(0).state, KEYS.partition(255).state)


# -- compaction -------------------------------------------------------------------------------------------------------------------


def scattered(deployment: Deployment, *, arrived: int, start: int = 0) -> None:
    """Four files of each log that arrived on one day, with rows that stand in two of them."""
    for part in range(4):
        first = start + part * 10
        made = many(12, start=first)
        events = heard(12, at=arrived - HOUR, start=first)
        batch = step.Batch(decisions=made, feedback=events, positions={"any": f"{arrived // 1000 + part}-0"})
        batch.write(deployment.settings.data_path)


def counted(deployment: Deployment) -> tuple[int, list[dict[str, Any]]]:
    """What the fold counts in the logs."""
    result = fold(deployment.settings, as_of=NOW, now=NOW)
    rows = pq.read_table(result.file).to_pylist()
    Path(result.file).unlink()
    return result.events, rows


def test_compaction_keeps_every_row_once_in_one_file_a_day(deployment: Deployment) -> None:
    scattered(deployment, arrived=NOW - 2 * DAY)
    scattered(deployment, arrived=NOW - DAY, start=100)
    before = counted(deployment)
    held, events = set(ids(deployment.settings)), set(moved_feedback(deployment.settings)["event_id"].to_pylist())
    assert len(moved_table(deployment.settings)) == 96 > len(held) == 84
    assert compact(deployment.settings, now=NOW + MINUTE * 10) == 12
    for name, key, expected in (("decisions", "decision_id", held), ("feedback", "event_id", events)):
        files = parquet_files(deployment.settings, name)
        assert len({file.parent for file in files}) == len(files) == 2
        found = [row for file in files for row in pq.read_table(file)[key].to_pylist()]
        assert len(found) == len(set(found))
        assert set(found) == expected
    assert counted(deployment) == before
    assert compact(deployment.settings, now=NOW + MINUTE * 10) == 0


def test_compaction_keeps_whole_rows(deployment: Deployment) -> None:
    scattered(deployment, arrived=NOW - 2 * DAY)
    before = {row["decision_id"]: row for row in moved_table(deployment.settings).to_pylist()}
    compact(deployment.settings, now=NOW + DAY)
    assert {row["decision_id"]: row for row in moved_table(deployment.settings).to_pylist()} == before


def test_todays_files_are_left_alone(deployment: Deployment) -> None:
    scattered(deployment, arrived=NOW)
    today = parquet_files(deployment.settings)
    assert len(today) == 4
    assert compact(deployment.settings, now=NOW + HOUR) == 0
    assert compact(deployment.settings, now=NOW + DAY) == 0  # a clock that runs ahead a little ends no day
    assert parquet_files(deployment.settings) == today
    assert compact(deployment.settings, now=NOW + DAY + 6 * MINUTE) == 6


def test_what_comes_late_to_a_compacted_day_is_kept_too(deployment: Deployment) -> None:
    scattered(deployment, arrived=NOW - 2 * DAY)
    compact(deployment.settings, now=NOW + DAY)
    scattered(deployment, arrived=NOW - 2 * DAY, start=20)
    expected = set(ids(deployment.settings))
    assert compact(deployment.settings, now=NOW + DAY) == 8
    assert sorted(expected) == ids(deployment.settings)


def test_killed_between_write_and_unlink_doubles_nothing_as_the_fold_counts(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    scattered(deployment, arrived=NOW - 2 * DAY)
    before = counted(deployment)
    unlink, gone = Path.unlink, 0

    def killed(path: Path, missing_ok: bool = False) -> None:
        nonlocal gone
        if gone == 1:
            raise Killed
        gone += 1
        unlink(path, missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", killed)
        with pytest.raises(Killed):
            compact(deployment.settings, now=NOW + DAY)
    assert len(parquet_files(deployment.settings)) == 4  # the whole, and three of its parts
    assert counted(deployment) == before
    compact(deployment.settings, now=NOW + DAY)
    assert len(parquet_files(deployment.settings)) == 1
    assert counted(deployment) == before
