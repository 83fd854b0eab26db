"""Decisions on their way from Redis to the Parquet log: none is lost, none counts twice."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis

from bandit.errors import DependencyAwayError
from bandit.records import Decision
from bandit.settings import Settings
from feature_repo import names
from feature_repo.partitions import partition
from serving.address import Address
from serving.breaker import CircuitBreaker
from serving.decision_log import append_command
from serving.wire import Wire
from tests.conftest import Deployment
from tests.tables_made import DAY, MINUTE, NOW, decision, feedback, write_feedback
from training import decisions as step
from training.archive import move_logs
from training.join import join
from training.tables import DECISIONS

MADE = NOW - 2 * DAY
DRAWN = [("a", "q1"), ("b", "q2"), ("a", "q3")]


def log(settings: Settings, decisions: list[Decision]) -> None:
    """Log as serving does."""
    wire = Wire(Address.of(settings.redis_url), CircuitBreaker(failures=1, pause=0.0), connections=1, patience=5.0)
    wire.exchange(b"".join(append_command(made) for made in decisions), len(decisions), time.monotonic() + 5.0)
    wire.close()


def many(count: int, *, start: int = 0) -> list[Decision]:
    return [decision(number, at=MADE + number, user_id=f"u{number}", drawn=DRAWN) for number in range(start, start + count)]


def moved_table(settings: Settings) -> pa.Table:
    files = sorted((settings.data_path / "decisions").rglob("*.parquet"))
    return pa.concat_tables([pq.read_table(file) for file in files]) if files else DECISIONS.empty_table()


def ids(settings: Settings) -> list[str]:
    return sorted(moved_table(settings)["decision_id"].to_pylist())


def left_in_redis(deployment: Deployment) -> int:
    client = deployment.redis
    return sum(client.xlen(names.DECISIONS_KEY % number) for number in range(names.PARTITIONS))


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
    files = {file: file.read_bytes() for file in (deployment.settings.data_path / "decisions").iterdir()}
    assert move_logs(deployment.settings).decisions == 0
    assert {file: file.read_bytes() for file in (deployment.settings.data_path / "decisions").iterdir()} == files
    log(deployment.settings, many(5, start=20))
    assert move_logs(deployment.settings).decisions == 5
    assert len(ids(deployment.settings)) == len(set(ids(deployment.settings))) == 25


def test_nothing_logged_is_nothing_moved(deployment: Deployment) -> None:
    assert move_logs(deployment.settings).decisions == 0
    assert not (deployment.settings.data_path / "decisions").exists()


def test_one_stream_longer_than_a_read_is_moved_whole(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "_READ_AT_ONCE", 7)
    log(deployment.settings, [decision(number, at=MADE + number, user_id="one") for number in range(50)])
    assert move_logs(deployment.settings).decisions == 50
    assert len(set(ids(deployment.settings))) == 50
    assert left_in_redis(deployment) == 0


def test_files_hold_a_bounded_number_of_rows(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "_ROWS_PER_FILE", 16)
    log(deployment.settings, many(50))
    assert move_logs(deployment.settings).decisions == 50
    rows = sorted(pq.read_metadata(file).num_rows for file in (deployment.settings.data_path / "decisions").rglob("*.parquet"))
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

    def slow(table: pa.Table, file: Path) -> None:
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
    write, stream = step.write_table, names.DECISIONS_KEY % partition("u")
    first, last = decision(1, at=MADE, user_id="u"), decision(2, at=MADE + 1, user_id="u")

    def slow(table: pa.Table, file: Path) -> None:
        write(table, file)
        deployment.redis.xadd(stream, {names.RECORD_FIELD: msgspec.msgpack.encode(last)}, id="1000-4")

    deployment.redis.xadd(stream, {names.RECORD_FIELD: msgspec.msgpack.encode(first)}, id="1000-3")
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
    stream = names.DECISIONS_KEY % partition("u")
    entry = deployment.redis.xadd(stream, {names.RECORD_FIELD: record}).decode()
    log(deployment.settings, [after])
    assert move_logs(deployment.settings).decisions == 2
    assert ids(deployment.settings) == sorted([before.decision_id, after.decision_id])
    assert left_in_redis(deployment) == 0
    (file,) = (deployment.settings.data_path / "dead_letters").glob("decisions-*.parquet")
    (row,) = pq.read_table(file).to_pylist()
    assert (row["stream"], row["entry_id"], row["record"]) == (stream, entry, record)
    assert row["reason"]


def test_only_malformed_entries_are_trimmed_too(deployment: Deployment) -> None:
    deployment.redis.xadd(names.DECISIONS_KEY % 9, {"other field": b"x"})
    assert move_logs(deployment.settings).decisions == 0
    assert left_in_redis(deployment) == 0


BROKEN = {
    "features of no whole row": {"features": b"\0" * 28},
    "features of no whole number": {"features": b"\0\0\0"},
    "no candidates": {"cluster_ids": [], "features": b""},
    "k beyond 32 bits": {"k": 2**40},
    "a time beyond the calendar": {"decided_at": 2**62},
}


@pytest.mark.parametrize("fields", BROKEN.values(), ids=BROKEN)
def test_a_record_that_is_no_decision_is_buried(deployment: Deployment, fields: dict[str, object]) -> None:
    broken = msgspec.structs.replace(decision(2, at=MADE, user_id="u", drawn=DRAWN), **fields)
    log(deployment.settings, [decision(1, at=MADE, user_id="u"), broken])
    assert move_logs(deployment.settings).decisions == 1
    assert len(list((deployment.settings.data_path / "dead_letters").glob("decisions-*.parquet"))) == 1


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
        patched.setattr("training.tables.os.fsync", killed)
        with pytest.raises(Killed):
            move_logs(deployment.settings)
    assert ids(deployment.settings) == []
    assert left_in_redis(deployment) == 5
    assert move_logs(deployment.settings).decisions == 5
    assert len(set(ids(deployment.settings))) == 5


def test_a_redis_that_is_away_is_said(deployment: Deployment) -> None:
    away = deployment.settings.model_copy(update={"redis_url": "redis://:secret@127.0.0.1:1/0"})
    with pytest.raises(DependencyAwayError, match=r"Redis at redis://127\.0\.0\.1:1/0 is away") as raised:
        move_logs(away)
    assert "secret" not in str(raised.value)
