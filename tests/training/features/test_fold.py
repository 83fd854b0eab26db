"""The fold against a plain double loop over the log, and the laws of decayed sums."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bandit.errors import EmptyLogError
from bandit.records import Decision, Feedback
from bandit.rewards.feedback import FUTURE_TOLERANCE
from bandit.settings.load import Settings
from feature_repo import names
from tests.conftest import Deployment
from tests.tables_made import DAY, HOUR, MINUTE, NOW, decision, feedback, feedback_table, write_decisions, write_feedback
from training.features.decayed_sums import sums
from training.features.feature_store import online_rows
from training.features.fold import Folded, fold
from training.features.materialize import materialize
from training.logs.schemas import DECISIONS

WEIGHTS = {"impression": 0.0, "repin": 1.0, "click": 0.5, "closeup": 0.25, "hide": -1.0}
SESSION, LONG = 30 * MINUTE, 14 * DAY
TOLERANCE = 1e-9
Sums = dict[tuple[str, str], dict[str, float]]


def log_of(count: int, *, seed: int = 0, until: int = NOW, users: int = 7) -> list[Feedback]:
    """Events of a few users and clusters, mostly recent, some months old, each third one in the session."""
    rng = np.random.default_rng(seed)
    ages = np.where(rng.random(count) < 0.3, rng.integers(0, 3 * HOUR, count), rng.integers(0, 60 * DAY, count))
    return [
        feedback(
            f"e{seed}-{number}",
            at=until - int(ages[number]),
            user_id=f"u{rng.integers(users)}",
            cluster_id=f"c{rng.integers(4)}",
            action=str(rng.choice(list(WEIGHTS), p=[0.6, 0.1, 0.1, 0.1, 0.1])),
        )
        for number in range(count)
    ]


def by_hand(events: Iterable[Feedback], decisions: Iterable[Decision] = (), *, as_of: int = NOW) -> Sums:
    """S(T) = sum of r_e * 2^(-(T - t_e) / h), one event at a time."""
    result: Sums = defaultdict(lambda: defaultdict(float))
    for event in {event.event_id: event for event in events}.values():
        if event.occurred_at > as_of:
            continue
        age = as_of - event.occurred_at
        session, long = math.exp2(-age / SESSION), math.exp2(-age / LONG)
        row = result[event.user_id, event.cluster_id]
        row["events"] += 1
        row[names.REWARD_SESSION] += WEIGHTS[event.action] * session
        row[names.REWARD_LONG] += WEIGHTS[event.action] * long
        if event.action == "impression":
            row[names.IMPRESSIONS_SESSION] += session
            row[names.IMPRESSIONS_LONG] += long
    for made in {made.decision_id: made for made in decisions}.values():
        if made.decided_at > as_of:
            continue
        for query in made.queries:
            row = result[made.user_id, query.cluster_id]
            row["events"] += 1
            row[names.DRAWS_SESSION] += math.exp2(-(as_of - made.decided_at) / SESSION)
    return result


def folded_sums(table: pa.Table) -> Sums:
    """A snapshot, as the same nested dictionary."""
    result: Sums = {}
    for row in table.to_pylist():
        for place, cluster_id in enumerate(row[names.REWARDED_CLUSTERS]):
            result[row[names.JOIN_KEY], cluster_id] = {name: row[name][place] for name in names.SUMS}
    return result


def assert_same(found: Mapping[tuple[str, str], Mapping[str, float]], expected: Sums) -> None:
    assert set(found) == set(expected)
    for key, cell in found.items():
        for name, value in cell.items():
            assert value == pytest.approx(expected[key][name], rel=TOLERANCE, abs=1e-300 if expected[key][name] else 1e-15), (key, name)


def run(settings: Settings, *, as_of: int = NOW, now: int = NOW) -> tuple[Folded, pa.Table]:
    result = fold(settings, as_of=as_of, now=now)
    return result, pq.read_table(result.file)


def sums_of(events: list[Feedback], decisions: list[Decision], settings: Settings, *, as_of: int = NOW) -> ibis.Table:
    """The fold's own expression over tables in memory."""
    drawn = [(made.user_id, query.cluster_id, made.decided_at) for made in decisions for query in made.queries]
    columns = [
        pa.array([row[place] for row in drawn], kind) for place, kind in enumerate((pa.string(), pa.string(), DECISIONS.field(2).type))
    ]
    draws = ibis.memtable(pa.table(columns, names=["user_id", "cluster_id", "drawn_at"]))
    log = ibis.memtable(feedback_table(events))
    return sums(log, draws, as_of=as_of, definition=settings.reward.sums_definition())


def cells(table: ibis.Table) -> Sums:
    rows = ibis.duckdb.connect().to_pyarrow(table).to_pylist()
    return {(row.pop("user_id"), row.pop("cluster_id")): row for row in rows}


# -- against the double loop ------------------------------------------------------------------------------------------------------


def test_equals_a_double_loop(deployment: Deployment) -> None:
    events = log_of(2000)
    write_feedback(deployment.settings, events[:700], name="a")
    write_feedback(deployment.settings, events[700:], name="b")
    decisions = [
        decision(number, at=NOW - number * 7 * MINUTE, user_id=f"u{number % 9}", drawn=[("c0", "x"), ("c0", "y"), (f"c{number % 4}", "z")])
        for number in range(60)
    ]
    write_decisions(deployment.settings, decisions)
    result, table = run(deployment.settings)
    expected = by_hand(events, decisions)
    assert_same(folded_sums(table), expected)
    assert result.users == table.num_rows == 9
    assert result.clusters == len(expected)
    assert result.events == sum(cell["events"] for cell in expected.values()) == 2000 + 180
    assert table[names.AS_OF].to_pylist() == [NOW] * 9
    assert table[names.TIMESTAMP].cast(pa.int64()).to_pylist() == [NOW] * 9
    assert table[names.JOIN_KEY].to_pylist() == sorted(table[names.JOIN_KEY].to_pylist())
    assert all(ids == sorted(ids) for ids in table[names.REWARDED_CLUSTERS].to_pylist())


def test_draws_fade_with_the_sessions_half_life_and_wait_for_nobodys_impression(deployment: Deployment) -> None:
    write_feedback(deployment.settings, [feedback("e", at=NOW - MINUTE)])
    made = [decision(1, at=NOW - SESSION, drawn=[("c", "q"), ("new", "r")]), decision(2, at=NOW - 2 * SESSION, drawn=[("new", "r")])]
    write_decisions(deployment.settings, [*made, made[0]])
    _, table = run(deployment.settings)
    found = folded_sums(table)
    assert found["u", "c"][names.DRAWS_SESSION] == pytest.approx(0.5, rel=TOLERANCE)
    assert found["u", "new"][names.DRAWS_SESSION] == pytest.approx(0.75, rel=TOLERANCE)
    assert found["u", "new"][names.IMPRESSIONS_LONG] == 0.0


def test_other_half_lives_and_weights_come_from_the_settings(deployment: Deployment) -> None:
    changed = deployment.change(session_half_life_minutes="60.0", long_half_life_days="1.0", repin="0.75")
    write_feedback(changed.settings, [feedback("i", at=NOW - DAY), feedback("r", at=NOW - HOUR, action="repin")])
    found = folded_sums(run(changed.settings)[1])["u", "c"]
    assert found[names.IMPRESSIONS_LONG] == pytest.approx(0.5, rel=TOLERANCE)
    assert found[names.REWARD_SESSION] == pytest.approx(0.375, rel=TOLERANCE)
    assert found[names.REWARD_LONG] == pytest.approx(0.75 * 2 ** (-1 / 24), rel=TOLERANCE)


# -- laws -------------------------------------------------------------------------------------------------------------------------


def test_order_does_not_matter(deployment: Deployment) -> None:
    events = log_of(500)
    write_feedback(deployment.settings, events)
    expected = folded_sums(run(deployment.settings)[1])
    rng = np.random.default_rng(1)
    shuffled = [events[place] for place in rng.permutation(len(events))]
    write_feedback(deployment.settings, shuffled[:100], name="a")
    write_feedback(deployment.settings, shuffled[100:], name="b")
    assert_same(folded_sums(run(deployment.settings)[1]), expected)


def test_the_same_event_id_counts_once(deployment: Deployment) -> None:
    events = log_of(300)
    write_feedback(deployment.settings, [*events, *events[:50]], name="a")
    write_feedback(deployment.settings, events[20:90], name="b")
    result, table = run(deployment.settings)
    assert_same(folded_sums(table), by_hand(events))
    assert result.events == 300


def test_of_copies_that_contradict_each_other_the_least_of_each_column_counts(deployment: Deployment) -> None:
    alone, last = feedback("alone", at=NOW - HOUR), feedback("e", at=NOW - HOUR, user_id="u1", cluster_id="c2", action="repin")
    copies = [last, feedback("e", at=NOW - 2 * HOUR, user_id="u2", cluster_id="c1", action="closeup")]
    least = feedback("e", at=NOW - 2 * HOUR, user_id="u1", cluster_id="c1", action="closeup")
    for order in (copies, copies[::-1]):
        write_feedback(deployment.settings, [*order, alone])
        result, table = run(deployment.settings)
        assert_same(folded_sums(table), by_hand([least, alone]))
        assert result.events == 2


@pytest.mark.parametrize("seed", range(4))
def test_two_parts_of_the_log_add_up_to_it(deployment: Deployment, seed: int) -> None:
    events = log_of(400, seed=seed)
    decisions = [decision(number, at=NOW - number * HOUR, user_id=f"u{number % 8}", drawn=[("c1", "x")]) for number in range(20)]
    cut = int(np.random.default_rng(seed).integers(1, 399))
    added: Sums = defaultdict(lambda: defaultdict(float))
    for part in ((events[:cut], decisions[:5]), (events[cut:], decisions[5:])):
        for key, cell in cells(sums_of(*part, deployment.settings)).items():
            for name, value in cell.items():
                added[key][name] += value
    whole = cells(sums_of(events, decisions, deployment.settings))
    assert_same(added, whole)
    assert_same(whole, by_hand(events, decisions))


@pytest.mark.parametrize("elapsed", [1, 17 * MINUTE, 5 * HOUR, 40 * DAY])
def test_moving_the_reference_time_is_one_multiplication(deployment: Deployment, elapsed: int) -> None:
    events, decisions = log_of(300), [decision(1, at=NOW - HOUR, user_id="u1", drawn=[("c1", "x"), ("c2", "y")])]
    early = cells(sums_of(events, decisions, deployment.settings))
    late = cells(sums_of(events, decisions, deployment.settings, as_of=NOW + elapsed))
    session, long = math.exp2(-elapsed / SESSION), math.exp2(-elapsed / LONG)
    for cell in early.values():
        for name in cell:
            cell[name] *= 1.0 if name == "events" else session if name.endswith("_session") else long
    assert sum(name.endswith("_session") for name in cell) == 3
    assert_same(late, early)


def test_a_late_event_counts_as_if_it_had_come_in_time(deployment: Deployment) -> None:
    events = log_of(200)
    write_feedback(deployment.settings, events[:150])
    run(deployment.settings, as_of=NOW)
    write_feedback(deployment.settings, events[150:], name="late")
    _, table = run(deployment.settings, as_of=NOW + HOUR, now=NOW + HOUR)
    found, expected = folded_sums(table), by_hand(events, as_of=NOW + HOUR)
    touched = {event.user_id for event in events[150:]}
    assert_same(found, {key: cell for key, cell in expected.items() if key[0] in touched})


def test_events_after_the_reference_time_wait(deployment: Deployment) -> None:
    events = [feedback("before", at=NOW - MINUTE), feedback("at", at=NOW), feedback("after", at=NOW + 1, action="repin")]
    made = [decision(1, at=NOW + 1)]
    write_feedback(deployment.settings, events)
    write_decisions(deployment.settings, made)
    result, table = run(deployment.settings, now=NOW + HOUR)
    assert result.events == 2
    assert_same(folded_sums(table), by_hand(events[:2]))
    result, table = run(deployment.settings, as_of=NOW + MINUTE, now=NOW + HOUR)
    assert (result.users, result.events) == (1, 4)
    assert_same(folded_sums(table), by_hand(events, made, as_of=NOW + MINUTE))


# -- snapshots --------------------------------------------------------------------------------------------------------------------


def test_a_second_fold_writes_only_users_with_news(deployment: Deployment) -> None:
    before = set(snapshots(deployment.settings))
    write_feedback(deployment.settings, [feedback("1", at=NOW - HOUR, user_id="old"), feedback("2", at=NOW - HOUR, user_id="both")])
    first, table = run(deployment.settings)
    assert table[names.JOIN_KEY].to_pylist() == ["both", "old"]
    write_feedback(deployment.settings, [feedback("3", at=NOW + MINUTE, user_id="both")], name="b")
    write_decisions(deployment.settings, [decision(1, at=NOW + MINUTE, user_id="drawn")])
    second, table = run(deployment.settings, as_of=NOW + HOUR, now=NOW + HOUR)
    assert table[names.JOIN_KEY].to_pylist() == ["both", "drawn"]
    assert second.users == 2
    assert second.file != first.file
    third = fold(deployment.settings, as_of=NOW + 2 * HOUR, now=NOW + 2 * HOUR)
    assert (third.users, third.events) == (0, 4)
    assert not Path(third.file).exists()
    assert set(snapshots(deployment.settings)) - before == {Path(first.file), Path(second.file)}


def test_folding_the_same_time_again_gives_the_same_snapshot(deployment: Deployment) -> None:
    events = log_of(3000, users=200)
    write_feedback(deployment.settings, events[:2000])
    run(deployment.settings, as_of=NOW - DAY)
    write_feedback(deployment.settings, events[2000:], name="b")
    first, expected = run(deployment.settings)
    again, found = run(deployment.settings)
    assert again == first
    assert again.users > 0
    # Not the same bytes: DuckDB adds in the order in which its threads come, so the last digits of a sum may differ.
    assert_same(folded_sums(found), folded_sums(expected))
    exact = [names.JOIN_KEY, names.REWARDED_CLUSTERS, names.AS_OF, names.TIMESTAMP, "events"]
    assert found.select(exact).equals(expected.select(exact))


def test_the_snapshot_is_named_by_its_time_to_the_microsecond(deployment: Deployment) -> None:
    write_feedback(deployment.settings, [feedback("1", at=NOW)])
    assert Path(fold(deployment.settings, as_of=NOW + 7, now=NOW + 7).file).name == "20250501T000000.000007.parquet"


def test_snapshots_of_before_with_more_columns_are_read_beside_those_of_now(deployment: Deployment) -> None:
    settings = deployment.settings
    write_feedback(settings, [feedback("1", at=NOW - HOUR), feedback("2", at=NOW - HOUR, user_id="other")], name="a")
    result, table = run(settings)
    former = pa.array([[float(row)] for row in range(len(table))], pa.list_(pa.float64()))
    pq.write_table(table.append_column("action_sums", former).append_column("last_impression_at", former), result.file)
    write_feedback(settings, [feedback("3", at=NOW)], name="b")
    second, news = run(settings, as_of=NOW + 1)
    assert news[names.JOIN_KEY].to_pylist() == ["u"]  # the other user's sums of before count
    assert pq.read_table(result.file).equals(table)
    assert materialize(settings, until=NOW + 1).written[names.CLUSTER_REWARDS] == 2
    assert online_rows(settings, deployment.redis).read("other") is not None
    assert second.users == 1


# -- bad input --------------------------------------------------------------------------------------------------------------------


def snapshots(settings: Settings) -> list[Path]:
    return sorted((settings.feature_repo_path / names.CLUSTER_REWARDS_PATH).iterdir())


def test_a_log_without_rows_is_an_error_that_says_where(deployment: Deployment) -> None:
    folder, before = str(deployment.settings.data_path / "feedback"), snapshots(deployment.settings)
    for make in (lambda: None, lambda: write_feedback(deployment.settings, [])):
        make()
        with pytest.raises(EmptyLogError, match="the feedback log is empty") as raised:
            fold(deployment.settings, as_of=NOW, now=NOW)
        assert raised.value.place == folder
    assert snapshots(deployment.settings) == before


def test_an_empty_file_beside_a_full_one_is_no_error(deployment: Deployment) -> None:
    write_feedback(deployment.settings, [], name="a")
    write_feedback(deployment.settings, [feedback("1", at=NOW)], name="b")
    assert run(deployment.settings)[0].events == 1


def test_a_clock_that_runs_ahead_a_little_is_accepted(deployment: Deployment) -> None:
    write_feedback(deployment.settings, [feedback("1", at=NOW + FUTURE_TOLERANCE), feedback("2", at=NOW)])
    assert run(deployment.settings)[0].events == 1


@pytest.mark.parametrize("kind", [pa.timestamp("ns", "UTC"), pa.timestamp("ms", "UTC"), pa.timestamp("us", "America/New_York")], ids=str)
def test_times_in_other_units_and_zones_are_the_same_times(deployment: Deployment, kind: pa.DataType) -> None:
    events = [feedback(str(number), at=NOW - number * 1000) for number in range(20)]
    table = feedback_table(events)
    place = table.schema.get_field_index("occurred_at")
    file = write_feedback(deployment.settings, events)
    pq.write_table(table.set_column(place, "occurred_at", table["occurred_at"].cast(kind)), file)
    assert_same(folded_sums(run(deployment.settings)[1]), by_hand(events))


def test_files_of_several_writers_are_read_together(deployment: Deployment) -> None:
    events = log_of(60)
    write_feedback(deployment.settings, events[:20], name="a")
    table = feedback_table(events[20:40])
    place = table.schema.get_field_index("occurred_at")
    table = table.set_column(place, "occurred_at", table["occurred_at"].cast(pa.timestamp("ns", "UTC")))
    pq.write_table(table.append_column("extra", pa.array(range(20))), deployment.settings.data_path / "feedback" / "b.parquet")
    reordered = feedback_table(events[40:]).select(
        ["occurred_at", "action", "user_id", "cluster_id", "event_id", "decision_id", "item_id", "query_id"]
    )
    place = reordered.schema.get_field_index("action")
    reordered = reordered.set_column(place, "action", reordered["action"].dictionary_encode())
    pq.write_table(reordered, deployment.settings.data_path / "feedback" / "c.parquet")
    assert_same(folded_sums(run(deployment.settings)[1]), by_hand(events))
