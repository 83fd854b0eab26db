"""Verify, and the verbs of the stream: what differs is named, what is right is said to be right."""

from __future__ import annotations

import json
import signal
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from bandit.errors import Status
from bandit.records import Feedback
from bandit.rewards.sums import Term, UserSums
from feature_repo import names
from feature_repo.keys import PARTITIONS
from feature_repo.store import open_store
from query_rewards import main
from tests.ports import free_port
from tests.streamed import Streamed
from tests.tables_made import HOUR, KEYS, feedback
from training.console import stop_event
from training.features.fold import fold
from training.features.materialize import materialize
from training.stream import verify as step
from training.stream.run import stream
from training.stream.verify import verify

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """The stream takes the signals of its process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The program, in this process: exit status, stdout, stderr."""

    def ran(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["query-rewards", *(str(argument) for argument in arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capfd.readouterr()
        code = ended.value.code
        return code if isinstance(code, int) else int(code is not None), captured.out, captured.err

    return ran


@pytest.fixture
def folded(streamed: Streamed, monkeypatch: pytest.MonkeyPatch) -> tuple[Streamed, list[Feedback]]:
    """A stream that has folded some events; half of them are in Parquet."""
    monkeypatch.setattr(step, "_PAUSE_SECONDS", 0.0)
    consumer, events = streamed.consumer(), streamed.events(200)
    streamed.send(events[:100])
    streamed.drain(consumer)
    consumer.flush()
    streamed.send(events[100:])
    streamed.drain(consumer)
    return streamed, events


def tampered(streamed: Streamed, user: str, *, with_row: bool) -> None:
    """One event too many in the sums of a user; in the row of the online store too, or there only."""
    key = KEYS.of_user(user).sums(user)
    sums = UserSums(streamed.settings.reward.sums_definition(), streamed.redis.get(key))
    sums.add([Term(sums.cluster_ids[0], 1, sums.as_of - HOUR)])
    if with_row:
        streamed.redis.set(key, sums.to_bytes())
    streamed.rows.prepare()
    pipeline = streamed.redis.pipeline(transaction=False)
    streamed.rows.write(pipeline, user, sums, "9")
    pipeline.execute()


def test_nothing_differs_in_a_stream_that_is_right(folded: tuple[Streamed, list[Feedback]]) -> None:
    streamed, events = folded
    streamed.assert_exact(events)


def test_a_user_whose_sums_were_tampered_with_is_named_and_no_other(folded: tuple[Streamed, list[Feedback]]) -> None:
    streamed, events = folded
    user = events[0].user_id
    tampered(streamed, user, with_row=True)
    found = verify(streamed.settings).differing
    assert list(found) == [user]
    assert "in the stream" in found[user]


def test_a_row_that_was_tampered_with_is_named(folded: tuple[Streamed, list[Feedback]]) -> None:
    streamed, events = folded
    user = events[1].user_id
    tampered(streamed, user, with_row=False)
    assert verify(streamed.settings).differing == {user: "the row in the online store is not the stream's"}


def test_a_user_that_the_stream_lost_or_made_up_is_named(folded: tuple[Streamed, list[Feedback]]) -> None:
    streamed, events = folded
    user = events[2].user_id
    stored = streamed.redis.getdel(KEYS.of_user(user).sums(user))
    streamed.redis.set(KEYS.of_user("made up").sums("made up"), stored)
    assert verify(streamed.settings).differing == {user: "missing in the stream", "made up": "missing in the batch fold"}


def test_an_event_that_the_stream_lost_is_found(folded: tuple[Streamed, list[Feedback]]) -> None:
    streamed, _ = folded
    lost = feedback("lost", at=streamed.now - HOUR, user_id="u1")
    streamed.send([lost])
    stream_key, state = KEYS.of_user("u1").feedback, KEYS.of_user("u1").state
    streamed.redis.hset(state, "feedback", streamed.redis.xinfo_stream(stream_key)["last-generated-id"])
    assert list(verify(streamed.settings).differing) == ["u1"]


def test_what_was_not_folded_yet_waits_and_differs_in_nothing(folded: tuple[Streamed, list[Feedback]]) -> None:
    streamed, _ = folded
    streamed.send(streamed.events(17, seed=5))
    verified = verify(streamed.settings)
    assert (verified.waiting, verified.differing) == (17, {})


def test_the_verb_says_so_in_its_exit_status(folded: tuple[Streamed, list[Feedback]], run: Run) -> None:
    streamed, events = folded
    settings = ("--settings", streamed.deployment.settings_file, "--json")
    status, out, _ = run("fold", "--verify", *settings)
    assert status == 0
    users = len({event.user_id for event in events})
    assert json.loads(out).items() >= {"users": users, "waiting": 0, "differing": 0}.items()
    tampered(streamed, events[0].user_id, with_row=True)
    status, out, err = run("fold", "--verify", *settings)
    assert status == Status.FAILED
    assert json.loads(out)["differing"] == 1
    assert f"user {events[0].user_id!r}: cluster " in err
    assert err.splitlines()[-1].startswith(f"query-rewards: 1 of {users} users differ: ")


# -- who writes cluster_rewards ---------------------------------------------------------------------------------------------------


def test_materialize_leaves_cluster_rewards_to_the_stream(folded: tuple[Streamed, list[Feedback]]) -> None:
    streamed, _ = folded
    fold(streamed.settings, as_of=streamed.now, now=streamed.now)
    before = {key: streamed.redis.dump(key) for key in streamed.redis.scan_iter("*")}
    assert materialize(streamed.settings, until=streamed.now).rows == 0
    assert {key: streamed.redis.dump(key) for key in streamed.redis.scan_iter("*")} == before
    assert open_store(streamed.settings.feature_repo_path, streamed.settings.redis_url).get_feature_view(names.CLUSTER_REWARDS)
    off = streamed.deployment.settings.stream.model_copy(update={"enabled": False})
    assert materialize(streamed.settings.model_copy(update={"stream": off}), until=streamed.now).rows > 0


def test_a_stream_that_is_not_enabled_is_refused(streamed: Streamed, run: Run) -> None:
    file = streamed.deployment.settings_file
    file.write_text(file.read_text().replace("enabled = true", "enabled = false"))
    streamed.send(streamed.events(5))
    status, out, err = run("stream", "--once", "--settings", file)
    assert (status, out) == (Status.USAGE, "")
    assert "setting 'stream.enabled': is false: two writers" in err
    assert streamed.waiting() == 5


def test_a_stream_ends_once_nothing_waits_and_leaves_everything_in_order(streamed: Streamed, run: Run) -> None:
    events = streamed.events(500)
    streamed.send([*events, *events[:20]])
    streamed.redis.xadd(KEYS.partition(3).feedback, {"r": b"noise"})
    status, out, err = run("stream", "--once", "--json", "--settings", streamed.deployment.settings_file)
    assert status == 0, err
    assert json.loads(out) == {"entries": 521, "duplicates": 20, "dead_letters": 1}
    streamed.assert_exact(events)
    assert streamed.waiting() == 0
    assert not streamed.redis.exists(KEYS.workers, *(KEYS.partition(number).lease for number in range(PARTITIONS)))


def test_a_stream_stops_at_a_signal_in_good_order_and_answers_for_its_metrics(streamed: Streamed) -> None:
    events, port, seen = streamed.events(50), free_port(), []
    streamed.send(events)

    def look() -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            seen.append(answer.read().decode())
        signal.raise_signal(signal.SIGTERM)

    timer = threading.Timer(1.5, look)
    timer.start()
    done = stream(streamed.settings, stop_event().is_set, metrics_port=port)
    timer.join()
    assert (done.entries, done.duplicates, done.dead_letters) == (50, 0, 0)
    assert "qr_stream_partitions 256.0" in seen[0]
    assert "qr_stream_entries_total" in seen[0]
    assert all(event.user_id not in seen[0].split() for event in events)
    streamed.assert_exact(events)
    assert streamed.waiting() == 0
