"""Rebuild: the online state made anew from the logs, by the settings of now."""

from __future__ import annotations

import time

import pytest

from bandit.rewards.sums import SumsDefinition, UserSums
from feature_repo.keys import PARTITIONS
from tests.streamed import Streamed
from tests.tables_made import DAY, HOUR, KEYS, decision, feedback, write_decisions, write_feedback
from training.logs.archive import move_logs
from training.stream.rebuild import users_from_logs
from training.stream.run import stream
from training.stream.state import StreamState
from training.stream.verify import verify


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is on its way while these tests verify."""
    monkeypatch.setattr("training.stream.verify._PAUSE_SECONDS", 0.0)


def definition(streamed: Streamed) -> SumsDefinition:
    return streamed.settings.reward.sums_definition()


def test_a_new_stream_begins_with_what_the_logs_hold(streamed: Streamed) -> None:
    old = [feedback(f"old{number}", at=streamed.now - (3 + number) * DAY, user_id=f"u{number % 7}") for number in range(100)]
    made = [decision(number, at=streamed.now - 3 * DAY, user_id=f"u{number}") for number in range(5)]
    write_feedback(streamed.settings, old)
    write_decisions(streamed.settings, made)
    consumer = streamed.consumer()
    streamed.drain(consumer)
    streamed.assert_exact(old, made)
    news = streamed.events(200)
    streamed.send(news)
    streamed.drain(consumer)
    streamed.assert_exact([*old, *news], made)


def test_what_is_in_the_logs_and_comes_again_counts_once(streamed: Streamed) -> None:
    events, made = streamed.events(100), streamed.decisions(20)
    write_feedback(streamed.settings, events)
    write_decisions(streamed.settings, made)
    streamed.send([*events, *made])
    consumer = streamed.consumer()
    assert streamed.drain(consumer) == 120
    assert streamed.total("duplicates") == 120
    streamed.assert_exact(events, made)


def test_no_logs_are_no_users(streamed: Streamed) -> None:
    assert list(users_from_logs(streamed.settings, definition(streamed))) == []
    consumer = streamed.consumer()
    assert streamed.drain(consumer) == 0
    assert consumer.partitions == PARTITIONS


def test_sums_from_the_logs_are_in_order_of_cluster_and_at_the_time_of_the_latest_event(streamed: Streamed) -> None:
    events = streamed.events(300)
    write_feedback(streamed.settings, events)
    found = dict(users_from_logs(streamed.settings, definition(streamed)))
    assert set(found) == {event.user_id for event in events}
    for user, sums in found.items():
        assert sums.as_of == max(event.occurred_at for event in events)
        assert sums.cluster_ids == sorted({event.cluster_id for event in events if event.user_id == user})


@pytest.mark.parametrize("changed", [{"repin": "0.25"}, {"long_half_life_days": "1.0"}, {"session_half_life_minutes": "5.0"}])
def test_other_weights_or_half_lives_make_the_sums_anew(streamed: Streamed, changed: dict[str, str]) -> None:
    consumer, events = streamed.consumer(), streamed.events(150)
    streamed.send(events)
    streamed.drain(consumer)
    consumer.close()
    streamed.settings = streamed.deployment.change(**changed).settings
    assert verify(streamed.settings).differing
    streamed.drain(streamed.consumer())
    verified = verify(streamed.settings)
    assert (verified.differing, verified.waiting) == ({}, 0)
    assert verified.users == len({event.user_id for event in events})


def test_sums_that_no_log_knows_are_removed(streamed: Streamed) -> None:
    user = "ghost"
    key = KEYS.of_user(user).sums(user)
    streamed.redis.set(key, UserSums(definition(streamed)).to_bytes())
    streamed.drain(streamed.consumer())
    assert not streamed.redis.exists(key)


def test_a_rebuild_that_was_broken_off_is_begun_again(streamed: Streamed, monkeypatch: pytest.MonkeyPatch) -> None:
    events = streamed.events(200)
    write_feedback(streamed.settings, events)
    consumer = streamed.consumer()

    class Gone(Exception):  # noqa: N818
        pass

    def gone(*_: object) -> None:
        raise Gone

    with monkeypatch.context() as patched:
        patched.setattr(StreamState, "begin", gone)
        with pytest.raises(Gone):
            consumer.step(block=False)
    assert not any(streamed.redis.exists(KEYS.partition(number).state) for number in range(PARTITIONS))
    streamed.let_leases_run_out()
    streamed.drain(streamed.consumer())
    streamed.assert_exact(events)


def test_two_processes_rebuild_a_part_each_and_forget_nothing_of_the_others(streamed: Streamed) -> None:
    events = streamed.events(300, users=100)
    write_feedback(streamed.settings, events)
    one, other = streamed.consumer(), streamed.consumer()
    streamed.redis.zadd(KEYS.workers, {"the other": time.time() + 60.0})  # both are there when the first takes its part
    one.step(block=False)
    streamed.redis.zrem(KEYS.workers, "the other")
    other.step(block=False)
    assert one.partitions == other.partitions == PARTITIONS // 2
    streamed.assert_exact(events)


def test_a_stream_that_was_off_for_a_while_has_seen_what_was_moved_without_it(streamed: Streamed) -> None:
    consumer, events = streamed.consumer(), streamed.events(300)
    streamed.send(events[:100])
    streamed.drain(consumer)
    consumer.close()
    streamed.send(events[100:200])
    off = streamed.settings.model_copy(update={"stream": streamed.settings.stream.model_copy(update={"enabled": False})})
    assert move_logs(off).feedback == 100
    streamed.send([*events[200:], *events[50:150]])
    streamed.drain(streamed.consumer())
    streamed.assert_exact(events)


def test_an_order_to_rebuild_forgets_sums_that_went_wrong(streamed: Streamed) -> None:
    consumer, events = streamed.consumer(), streamed.events(100)
    streamed.send(events)
    streamed.drain(consumer)
    consumer.close()
    user = events[0].user_id
    streamed.redis.set(KEYS.of_user(user).sums(user), UserSums(definition(streamed)).to_bytes())
    assert user in verify(streamed.settings).differing
    stream(streamed.settings, lambda: False, once=True, rebuild=True)
    streamed.assert_exact(events)


def test_serving_reads_every_row_while_the_state_is_made_anew(streamed: Streamed, monkeypatch: pytest.MonkeyPatch) -> None:
    consumer, events = streamed.consumer(), streamed.events(100)
    streamed.send(events)
    streamed.drain(consumer)
    consumer.close()
    streamed.redis.delete(*(KEYS.partition(number).state for number in range(PARTITIONS)))
    users, missing = {event.user_id for event in events}, []
    begin = StreamState.begin

    def looked_at(*arguments: object) -> None:
        missing.extend(user for user in users if streamed.rows.read(user) is None)
        begin(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(StreamState, "begin", looked_at)
    streamed.drain(streamed.consumer())
    assert missing == []
    assert verify(streamed.settings).differing == {}


def test_what_came_before_the_window_is_in_the_sums_though_its_id_is_not_kept(streamed: Streamed) -> None:
    old, new = feedback("old", at=streamed.now - 5 * DAY, user_id="u"), feedback("new", at=streamed.now - HOUR, user_id="u")
    write_feedback(streamed.settings, [old, new])
    streamed.drain(streamed.consumer())
    (key,) = streamed.redis.scan_iter(KEYS.of_user("u").seen("*"))
    assert streamed.redis.scard(key) == 1
    streamed.assert_exact([old, new])
