"""The consumer: the same sums as the batch fold, each record once, whatever breaks in between."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import redis

from bandit.records import Feedback
from bandit.rewards.feedback import FUTURE_TOLERANCE
from bandit.rewards.lineage import Move, Reclustering
from bandit.rewards.sums import MAX_CLUSTERS
from feature_repo import names
from feature_repo.keys import PARTITIONS, partition
from tests.streamed import Killed, Streamed
from tests.tables_made import DAY, HOUR, KEYS, MINUTE, decision, feedback
from training.features.online_rows import RewardRows
from training.logs.lineage import write_lineage
from training.stream import archiver
from training.stream.archiver import Archiver
from training.stream.state import Commit, Partition


def shuffled(records: list[Any], seed: int = 0, *, repeated: float = 0.05) -> list[Any]:
    """In any order, and some twice."""
    rng = np.random.default_rng(seed)
    again = [record for record in records if rng.random() < repeated]
    mixed = [*records, *again]
    return [mixed[place] for place in rng.permutation(len(mixed))]


# -- one fold, two runners --------------------------------------------------------------------------------------------------------


def test_the_stream_is_the_batch_fold_of_what_came_shuffled_repeated_and_late(streamed: Streamed) -> None:
    events, decisions, consumer = streamed.events(3000), streamed.decisions(400), streamed.consumer()
    sent = shuffled([*events, *decisions])
    for start in range(0, len(sent), 700):
        streamed.send(sent[start : start + 700])
        streamed.drain(consumer)
        if start == 1400:
            consumer.flush()  # then a part is in Parquet, and a part in the streams
    assert streamed.total("duplicates") == len(sent) - 3400 > 100
    assert streamed.total("entries") == len(sent)
    streamed.assert_exact(events, decisions)
    consumer.close()
    streamed.assert_exact(events, decisions)
    assert streamed.waiting() == 0
    assert set(streamed.archived()) == {event.event_id for event in events}


def test_reclusterings_between_the_events_are_the_batch_folds_lineage(streamed: Streamed) -> None:
    consumer, sent, history = streamed.consumer(), [], []
    for day in range(3):
        at = streamed.now - (2 - day) * 10 * HOUR  # all that is sent before happened before
        batch = [msgspec.structs.replace(event, occurred_at=at - 1 - n * MINUTE) for n, event in enumerate(streamed.events(120, seed=day))]
        drawn = [msgspec.structs.replace(made, decided_at=at - 1 - n) for n, made in enumerate(streamed.decisions(20, seed=day + 1))]
        streamed.send([*batch, *drawn])
        sent += [*batch, *drawn]
        split = [
            Move(from_cluster="c0", to_cluster="c0", share=0.75),
            Move(from_cluster="c0", to_cluster=f"new{day}", share=0.25),
            Move(from_cluster="c1", to_cluster="c2", share=1.0),
        ]
        changes = [Reclustering(user_id=f"u{number}", effective_at=at, moves=split) for number in range(20)]
        write_lineage(streamed.settings, changes, as_of=at)
        streamed.send(changes[:10])
        streamed.drain(consumer)
        streamed.send([*changes[10:], *changes[:3]])  # some come again
        history += changes
    late = [msgspec.structs.replace(event, occurred_at=streamed.now - 15 * HOUR - n) for n, event in enumerate(streamed.events(60, seed=9))]
    streamed.drain(consumer)
    streamed.send(late)
    streamed.drain(consumer)
    sent += late
    events = [one for one in sent if isinstance(one, Feedback)]
    streamed.assert_exact(events, [one for one in sent if not isinstance(one, Feedback)], history)
    consumer.close()


def test_a_decision_without_queries_and_a_reclustering_of_nobody_change_nothing(streamed: Streamed) -> None:
    consumer, event = streamed.consumer(), feedback("e", at=streamed.now, user_id="u1")
    move = Move(from_cluster="a", to_cluster="b", share=1.0)
    for _ in range(2):  # what the first leaves must be read by the second
        streamed.send([decision(1, at=streamed.now, user_id="u1", drawn=[]), Reclustering(user_id="u1", effective_at=1, moves=[move])])
        streamed.drain(consumer)
    streamed.send([event])
    streamed.drain(consumer)
    streamed.assert_exact([event])


# -- once -------------------------------------------------------------------------------------------------------------------------


def test_a_repeated_event_counts_once_across_steps_buckets_and_consumers(streamed: Streamed) -> None:
    event, made = feedback("e", at=streamed.now - HOUR, user_id="u"), decision(1, at=streamed.now - HOUR, user_id="u")
    first = streamed.consumer()
    streamed.send([event, made, event])
    streamed.drain(first)
    streamed.send([event, made])
    streamed.drain(first)
    bucket = streamed.now // (DAY)
    seen = KEYS.of_user("u").seen(bucket)
    assert streamed.redis.scard(seen) == 2
    streamed.redis.rename(seen, KEYS.of_user("u").seen(bucket - 1))  # as if it had come the day before
    first.close()
    second = streamed.consumer()
    streamed.send([event, made])
    streamed.drain(second)
    assert streamed.total("duplicates") == 2
    streamed.assert_exact([event], [made])


def test_a_flood_of_one_event_is_one_event(streamed: Streamed) -> None:
    event, consumer = feedback("e", at=streamed.now, user_id="u"), streamed.consumer()
    streamed.send([event] * 20_000)
    assert streamed.drain(consumer) == 20_000
    assert streamed.redis.scard(KEYS.of_user("u").seen(streamed.now // DAY)) == 1
    streamed.assert_exact([event])


def test_seen_ids_live_until_their_event_cannot_come_again_and_no_longer(streamed: Streamed) -> None:
    consumer = streamed.consumer()
    streamed.send(streamed.events(50))
    streamed.drain(consumer)
    for key in streamed.redis.scan_iter(KEYS.every_partition.seen("*")):
        assert (3 * DAY) // 1_000_000 <= streamed.redis.ttl(key) <= (3 * DAY + FUTURE_TOLERANCE + 2 * MINUTE) // 1_000_000


def test_what_waited_until_its_repetitions_were_forgotten_still_counts_once(streamed: Streamed) -> None:
    event = feedback("e", at=streamed.now - 5 * DAY, user_id="u")
    stream, record = KEYS.of_user("u").feedback, {names.RECORD_FIELD: msgspec.msgpack.encode(event)}
    first = streamed.consumer()
    streamed.redis.xadd(stream, record, id=f"{(streamed.now - 4 * DAY) // 1000}-0")
    streamed.drain(first)
    first.close()
    for key in streamed.redis.scan_iter(KEYS.every_partition.seen("*")):  # four days without a consumer
        streamed.redis.delete(key)
    streamed.redis.xadd(stream, record, id=f"{(streamed.now - 4 * DAY) // 1000}-1")
    streamed.drain(streamed.consumer())
    streamed.assert_exact([event])


# -- ownership --------------------------------------------------------------------------------------------------------------------


def test_an_owner_that_was_frozen_past_its_lease_cannot_commit(streamed: Streamed) -> None:
    old, new = streamed.consumer(), streamed.consumer()
    events = streamed.events(300)
    streamed.send(events[:100])
    streamed.drain(old)
    streamed.send(events[100:200])
    works = old.read(block=False)  # it read and folded, and then it froze
    old.fold(works)
    streamed.let_leases_run_out()
    streamed.drain(new)
    streamed.send(events[200:])
    old.commit(works)
    assert old.partitions < PARTITIONS
    streamed.drain(new)
    streamed.assert_exact(events)


def test_the_late_row_of_an_old_owner_does_not_replace_the_new_ones(streamed: Streamed, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = streamed.consumer(), streamed.consumer()
    events = streamed.events(200, users=5)
    streamed.send(events[:100])
    held_back: list[Any] = []
    execute = redis.client.Pipeline.execute

    def frozen(pipeline: redis.client.Pipeline, raise_on_error: bool = True) -> Any:
        if any(
            str(command[0][-1]).startswith("b'") and names.ROW_VERSION_FIELD in map(str, command[0]) for command in pipeline.command_stack
        ):
            held_back.append(list(pipeline.command_stack))
            pipeline.reset()
            return []
        return execute(pipeline, raise_on_error)

    with monkeypatch.context() as patched:
        patched.setattr(redis.client.Pipeline, "execute", frozen)
        old.step(block=False)
    assert held_back
    streamed.let_leases_run_out()
    streamed.send(events[100:])
    streamed.drain(new)
    for commands in held_back:
        for arguments, _ in commands:
            streamed.redis.execute_command(*arguments)
    streamed.assert_exact(events)


def test_an_heir_writes_the_rows_and_the_logs_that_the_dead_owner_did_not(streamed: Streamed, monkeypatch: pytest.MonkeyPatch) -> None:
    dead, events, decisions = streamed.consumer(), streamed.events(200), streamed.decisions(30)
    streamed.send([*events, *decisions])
    with monkeypatch.context() as patched:  # it commits, and then no row is written
        patched.setattr(RewardRows, "write", lambda *_: None)
        streamed.drain(dead)
    assert streamed.rows.read(events[0].user_id) is None
    assert streamed.archived() == []
    streamed.let_leases_run_out()
    heir = streamed.consumer()
    assert heir.step(block=False) == 0
    streamed.assert_exact(events, decisions)
    heir.close()
    assert sorted(streamed.archived()) == sorted(event.event_id for event in events)
    assert sorted(streamed.archived("decisions", "decision_id")) == sorted(made.decision_id for made in decisions)
    assert streamed.waiting() == 0


def test_two_consumers_share_the_work_and_count_nothing_twice(streamed: Streamed) -> None:
    one, events = streamed.consumer(), streamed.events(2000, users=300)
    streamed.send(events[:1000])
    streamed.drain(one)
    other = streamed.consumer()
    streamed.send(shuffled(events))
    for _ in range(4):
        for consumer in (one, other):
            consumer.balance_now()
            consumer.step(block=False)
    assert one.partitions == other.partitions == PARTITIONS // 2
    streamed.drain(one)
    streamed.drain(other)
    streamed.assert_exact(events)
    one.close()
    other.close()
    assert set(streamed.archived()) == {event.event_id for event in events}


# -- killed -----------------------------------------------------------------------------------------------------------------------


@contextmanager
def killed_at(monkeypatch: pytest.MonkeyPatch, number: int, *, after: bool) -> Iterator[Callable[[], bool]]:
    """The process is gone at this call to Redis, before it is sent or after it was answered; yields whether it came to that."""
    calls, hit = 0, False

    def watched(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls, hit
            calls += 1
            if hit or (calls == number and not after):
                hit = True
                raise Killed
            result = original(*arguments, **options)
            if calls == number:
                hit = True
                raise Killed
            return result

        return call

    with monkeypatch.context() as patched:
        patched.setattr(redis.client.Pipeline, "execute", watched(redis.client.Pipeline.execute))
        patched.setattr(redis.Redis, "execute_command", watched(redis.Redis.execute_command))
        yield lambda: hit


@pytest.mark.parametrize("after", [False, True], ids=["before a call", "after a call"])
def test_killed_at_each_call_to_redis_in_turn_every_record_counts_once(
    streamed: Streamed, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    events, decisions, kills = [], [], 0
    for number in range(1, 100):
        news, made = streamed.events(12, seed=number), streamed.decisions(3, seed=number)
        events += news
        decisions += made
        streamed.send([*news, *made])
        consumer = streamed.consumer()
        with killed_at(monkeypatch, number, after=after) as hit:
            try:
                consumer.step(block=False)
                consumer.step(block=False)
                consumer.flush()
            except Killed:
                kills += 1
            if not hit():
                break
        streamed.let_leases_run_out()
    assert kills >= 10
    last = streamed.consumer()
    streamed.let_leases_run_out()
    streamed.drain(last)
    streamed.assert_exact(events, decisions)
    last.close()
    assert set(streamed.archived()) == {event.event_id for event in events}
    assert streamed.waiting() == 0


def test_a_redis_that_forgot_its_scripts_or_broke_off_is_gone_on_with(streamed: Streamed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.stream.consumer._RETRY_SECONDS", 0.0)
    consumer, events, turns = streamed.consumer(), streamed.events(90), iter(range(100))
    execute = redis.client.Pipeline.execute

    def broken(pipeline: redis.client.Pipeline, raise_on_error: bool = True) -> Any:
        execute(pipeline, raise_on_error)
        raise redis.ConnectionError("the reply was lost")

    def stop() -> bool:
        turn = next(turns)
        if turn < 9:
            monkeypatch.setattr(redis.client.Pipeline, "execute", execute)
            streamed.send(events[10 * turn : 10 * turn + 10])
            if turn % 3 == 1:
                streamed.redis.script_flush()
            if turn % 3 == 2:
                monkeypatch.setattr(redis.client.Pipeline, "execute", broken)
        if turn == 9:
            monkeypatch.setattr(redis.client.Pipeline, "execute", execute)
        return turn > 12

    consumer.run(stop)
    assert streamed.total("failures") >= 4
    streamed.assert_exact(events)
    assert streamed.waiting() == 0


def test_a_redis_that_lost_everything_is_filled_again_from_the_logs(streamed: Streamed) -> None:
    consumer, events, decisions = streamed.consumer(), streamed.events(400), streamed.decisions(50)
    streamed.send([*events[:200], *decisions])
    streamed.drain(consumer)
    consumer.flush()
    streamed.send(events[200:300])
    streamed.drain(consumer)  # folded, and only this process has them
    streamed.redis.flushdb()
    streamed.send(shuffled(events[250:]))
    consumer.step(block=False)  # may not commit: its leases are gone
    consumer.balance_now()
    streamed.drain(consumer)
    streamed.assert_exact(events, decisions)
    streamed.send([*events, *decisions])
    streamed.drain(consumer)
    streamed.assert_exact(events, decisions)


# -- bad records ------------------------------------------------------------------------------------------------------------------


def test_bad_records_are_buried_with_a_reason_and_the_others_go_on(streamed: Streamed) -> None:
    consumer, now = streamed.consumer(), streamed.now
    good = [feedback(f"good{number}", at=now - number, user_id="u") for number in range(3)]
    of = KEYS.of_user("u")
    bad: list[tuple[str, dict[str, bytes], str]] = [
        (of.feedback, {"r": b"\xc1 noise"}, "not a feedback event"),
        (of.feedback, {"other": b"x"}, "not a feedback event"),
        (of.feedback, {"r": b"\x81\xa1x" + b"\x91" * 8000}, "not a feedback event"),
        (of.feedback, {"r": b"x" * 10 * 1024 * 1024}, "10485760 bytes"),
        (of.feedback, {"r": msgspec.msgpack.encode(feedback("bad1", at=now, user_id="u", action="bookmark"))}, "action"),
        (of.feedback, {"r": msgspec.msgpack.encode(feedback("bad2", at=now + HOUR, user_id="u"))}, "occurred_at"),
        (of.feedback, {"r": msgspec.msgpack.encode(feedback("bad3", at=now - 9 * DAY, user_id="u"))}, "occurred_at"),
        (of.feedback, {"r": msgspec.msgpack.encode(feedback("bad4", at=now, user_id="a\0"))}, "user_id: control"),
        (of.feedback, {"r": msgspec.msgpack.encode(feedback("bad5", at=now, user_id="elsewhere"))}, "user_id: its events"),
        (of.feedback, {"l": b"\xc1"}, "not a reclustering"),
        (of.decisions, {"r": b"\xc1 noise"}, "not a decision"),
        (of.decisions, {"r": msgspec.msgpack.encode(decision(1, at=now + HOUR, user_id="u"))}, "decided_at"),
        (of.decisions, {"r": msgspec.msgpack.encode(decision(2, at=now, user_id="u", seed=2**63))}, "seed"),
        (of.decisions, {"r": msgspec.msgpack.encode(decision(3, at=now, user_id="elsewhere"))}, "user_id: its events"),
    ]
    streamed.send(good[:1])
    for key, fields, _ in bad:
        streamed.redis.xadd(key, fields)
    streamed.send(good[1:])
    assert streamed.drain(consumer) == len(good) + len(bad)
    reasons = sorted(streamed.dead())
    assert len(reasons) == len(bad)
    for _, _, reason in bad:
        assert sum(found.startswith(reason) for found in reasons) == sum(other == reason for _, _, other in bad), reason
    assert streamed.total("dead_letters") == len(bad)
    streamed.assert_exact(good)
    consumer.close()
    assert sorted(streamed.archived("dead_letters/stream", "reason")) == reasons
    assert max(len(record) for record in streamed.archived("dead_letters/stream", "record")) == 64 * 1024
    assert max(streamed.redis.memory_usage(key) for key in streamed.redis.scan_iter(KEYS.every_partition.dead_letters)) < 64 * 1024
    assert sorted(streamed.archived()) == sorted(event.event_id for event in good)
    streamed.assert_exact(good)


def test_a_user_of_ten_thousand_clusters_gets_as_many_as_are_allowed_and_the_rest_are_buried(streamed: Streamed) -> None:
    consumer, now = streamed.consumer(), streamed.now
    events = [feedback(f"e{number}", at=now, user_id="u", cluster_id=f"c{number}") for number in range(10_000)]
    streamed.send([decision(1, at=now, user_id="u", drawn=[(f"d{number}", "q") for number in range(2000)]), *events])
    streamed.drain(consumer)
    again = feedback("again", at=now, user_id="u", cluster_id="c3")
    streamed.send([again])
    streamed.drain(consumer)
    taken = [*events[:MAX_CLUSTERS], again]
    streamed.assert_exact(taken)
    assert streamed.total("dead_letters") == 9001
    assert streamed.redis.strlen(KEYS.of_user("u").sums("u")) < 100_000
    streamed.let_leases_run_out()
    heir = streamed.consumer()  # the logs that it writes for the dead one hold no more than was counted
    heir.step(block=False)
    heir.close()
    assert sorted(streamed.archived()) == sorted(event.event_id for event in taken)
    assert len(streamed.archived("dead_letters/stream", "reason")) == 9001
    streamed.assert_exact(taken)


# -- the logs ---------------------------------------------------------------------------------------------------------------------


def test_only_what_was_folded_and_is_in_parquet_is_trimmed(streamed: Streamed, monkeypatch: pytest.MonkeyPatch) -> None:
    trim, trimmed, client = Archiver.trim, 0, streamed.redis

    def watched(archiver: Archiver, positions: Mapping[str, str]) -> None:
        nonlocal trimmed
        trimmed += 1
        on_disk = set(streamed.archived())
        for stream, position in positions.items():
            state = client.hget(stream.rpartition(":")[0] + ":state", "feedback").decode()
            assert [int(part) for part in position.split("-")] <= [int(part) for part in state.split("-")]
            for _, fields in client.xrange(stream, max=position):
                assert msgspec.msgpack.decode(fields[b"r"], type=Feedback).event_id in on_disk
        trim(archiver, positions)

    monkeypatch.setattr(Archiver, "trim", watched)
    consumer, events = streamed.consumer(), streamed.events(300)
    for start in range(0, 300, 100):
        streamed.send(events[start : start + 100])
        consumer.step(block=False)
        streamed.send(events[start : start + 20])  # not folded when the others are trimmed
        consumer.flush()
        assert streamed.waiting() > 0
        streamed.drain(consumer)
    consumer.close()
    assert trimmed >= 3
    streamed.assert_exact(events)


def test_a_full_disk_loses_nothing_trims_nothing_and_memory_stays_bounded(streamed: Streamed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archiver, "_ROWS_PER_FILE", 50)
    monkeypatch.setattr(archiver, "_ROWS_IN_MEMORY", 200)
    monkeypatch.setattr(archiver.time, "sleep", lambda seconds: None)
    consumer, events = streamed.consumer(), streamed.events(1000)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("training.logs.writing.os.fsync", full)
        for start in range(0, 1000, 100):
            streamed.send(events[start : start + 100])
            for _ in range(5):
                consumer.step(block=False)
        assert 200 <= streamed.total("entries") <= 400  # the bound of the memory, and one step
        assert streamed.waiting() == 1000
        assert streamed.archived() == []
        with pytest.raises(OSError, match="No space left"):
            consumer.flush()
    consumer.flush()  # there is room again
    streamed.drain(consumer)
    streamed.assert_exact(events)
    consumer.close()
    assert sorted(streamed.archived()) == sorted(event.event_id for event in events)
    assert streamed.waiting() == 0
    assert all(pq.read_metadata(file).num_rows for file in streamed.settings.data_path.rglob("*.parquet"))


def test_a_consumer_that_ends_on_a_full_disk_leaves_the_logs_to_its_heir(streamed: Streamed, monkeypatch: pytest.MonkeyPatch) -> None:
    consumer, events = streamed.consumer(), streamed.events(50)
    streamed.send(events)
    streamed.drain(consumer)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("training.logs.writing.os.fsync", full)
        consumer.close()
    assert streamed.waiting() == 50
    heir = streamed.consumer()
    heir.step(block=False)
    heir.close()
    assert sorted(streamed.archived()) == sorted(event.event_id for event in events)


def test_the_backlog_can_be_watched(streamed: Streamed) -> None:
    consumer = streamed.consumer()
    consumer.step(block=False)
    streamed.send(streamed.events(30))
    consumer.balance_now()
    consumer.step(block=False)
    assert streamed.metrics.total(streamed.metrics.backlog) == 30
    consumer.close()


def test_a_commit_of_an_old_fence_or_an_old_count_changes_nothing(streamed: Streamed) -> None:
    consumer = streamed.consumer()
    consumer.step(block=False)
    fence = int(streamed.redis.get(KEYS.partition(7).fence))
    state = streamed.state()
    owned = state.load({7: fence})[0][7]
    change = Commit(feedback="5-0", decisions="0-0", ids=[b"x"], dead=[(b"r", "why")], sums={"u": b"sums"})
    before = {key: streamed.redis.dump(key) for key in streamed.redis.scan_iter("{query_rewards:7}:*")}
    for other, commits in ((fence - 1, 0), (fence + 1, 0), (fence, 1)):
        stale = Partition(number=7, fence=other, commits=commits, feedback="0-0", decisions="0-0")
        pipeline = streamed.redis.pipeline(transaction=False)
        state.commit(pipeline, stale, change, streamed.now)
        assert pipeline.execute() == [0]
    assert {key: streamed.redis.dump(key) for key in streamed.redis.scan_iter("{query_rewards:7}:*")} == before
    pipeline = streamed.redis.pipeline(transaction=False)
    state.commit(pipeline, owned, change, streamed.now)
    assert pipeline.execute() == [1]
    assert streamed.redis.get(KEYS.partition(7).sums("u")) == b"sums"


def test_an_owner_that_lost_its_partition_removes_no_sums_of_the_new_one(streamed: Streamed) -> None:
    consumer = streamed.consumer()
    event = feedback("e", at=streamed.now, user_id="u")
    streamed.send([event])
    streamed.drain(consumer)
    number = partition("u")
    fence = int(streamed.redis.get(KEYS.partition(number).fence))
    streamed.state().forget(number, fence - 1, [KEYS.partition(number).sums("u").encode()])
    streamed.assert_exact([event])
