"""The join of decisions with their feedback: training rows, and the events that belong to no decision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bandit.errors import EmptyLogError, InvalidTableError
from bandit.model.featurize import FEATURE_NAMES, FEATURE_VERSION
from bandit.records import Decision, Feedback
from bandit.settings.load import Settings
from tests.conftest import Deployment
from tests.tables_made import DAY, HOUR, MINUTE, NOW, decision, feedback, naive, write_decisions, write_feedback
from training.models.join import DEAD_LETTERS_FILE, Joined, examples_file, join

WINDOW = 24 * HOUR
MADE = NOW - 2 * DAY  # when the decisions of these tests are made: long enough ago to have closed


def run(settings: Settings, decisions: list[Decision], events: list[Feedback], *, as_of: int = NOW) -> tuple[Joined, pa.Table]:
    write_decisions(settings, decisions)
    write_feedback(settings, events)
    result = join(settings, as_of=as_of)
    assert Path(result.file) == examples_file(settings)
    return result, pq.read_table(result.file)


def read_reward(settings: Settings) -> float:
    return float(pq.read_table(examples_file(settings))["reward"][0].as_py())


def dead_letters(settings: Settings) -> dict[str, str]:
    """Reason by event id."""
    table = pq.read_table(settings.data_path / DEAD_LETTERS_FILE)
    return dict(zip(table["event_id"].to_pylist(), table["reason"].to_pylist(), strict=True))


def of(made: Decision, event_id: str, action: str = "impression", *, after: int = MINUTE, **fields: str) -> Feedback:
    """Feedback on the first query of a decision."""
    first = made.queries[0]
    plain = {"decision_id": made.decision_id, "user_id": made.user_id, "cluster_id": first.cluster_id, "query_id": first.item_id}
    return feedback(event_id, at=made.decided_at + after, action=action, **(plain | fields))


def test_one_row_per_drawn_cluster_with_its_impressions_and_reward(deployment: Deployment) -> None:
    made = decision(1, at=MADE, drawn=[("a", "q1"), ("a", "q2"), ("b", "q3"), ("c", "q4")])
    events = [
        of(made, "1", item_id="x"),
        of(made, "2", "repin", item_id="x"),
        of(made, "3", item_id="y"),  # silence: an impression worth nothing
        of(made, "4", item_id="x", query_id="q2"),  # the same item behind another query is another impression
        of(made, "5", "click", item_id="x", query_id="q2"),
        of(made, "6", item_id="z", cluster_id="b", query_id="q3"),
        of(made, "7", "hide", item_id="z", cluster_id="b", query_id="q3"),
    ]
    result, table = run(deployment.settings, [made], events)
    rows = {row["cluster_id"]: row for row in table.to_pylist()}
    assert {name: (row["draws"], row["impressions"], row["reward"]) for name, row in rows.items()} == {
        "a": (2, 3, 1.5),
        "b": (1, 1, -1.0),
        "c": (1, 0, 0.0),
    }
    assert (result.decisions, result.waiting, result.rows, result.impressions, result.dead_letters) == (1, 0, 3, 4, 0)
    assert dead_letters(deployment.settings) == {}


def test_rows_carry_the_decision_and_the_features_and_quota_of_their_own_cluster(deployment: Deployment) -> None:
    drawn = [("c", "q1"), ("a", "q2"), ("c", "q3"), ("b", "q4")]  # candidates in the order c, a, b: not the alphabet's
    decisions = [decision(number, at=MADE + number, user_id=f"u{number}", drawn=drawn, model_version="7") for number in range(5)]
    _, table = run(deployment.settings, decisions, [of(decisions[0], "1")])
    assert table.num_rows == 15
    assert table["feature_version"].to_pylist() == [FEATURE_VERSION] * 15
    by_id = {made.decision_id: made for made in decisions}
    for row in table.to_pylist():
        made = by_id[row["decision_id"]]
        place = made.cluster_ids.index(row["cluster_id"])
        np.testing.assert_array_equal(np.array(row["features"], np.float32), made.feature_matrix()[place])
        assert len(row["features"]) == len(FEATURE_NAMES)
        assert row["quota"] == made.quotas[place]
        assert (row["user_id"], row["policy"], row["model_version"]) == (made.user_id, "query_reward", "7")
    assert table["decided_at"].cast(pa.int64()).to_pylist() == sorted(made.decided_at for made in decisions for _ in range(3))


def test_candidates_that_were_not_drawn_make_no_row(deployment: Deployment) -> None:
    made = decision(1, at=MADE, drawn=[("a", "q1"), ("b", "q2")])
    only_b = decision(2, at=MADE, drawn=[("a", "q1"), ("b", "q2")], queries=made.queries[1:])
    result, table = run(deployment.settings, [only_b], [of(only_b, "1")])
    assert table["cluster_id"].to_pylist() == ["b"]
    np.testing.assert_array_equal(table["features"].to_pylist()[0], only_b.feature_matrix()[1])
    assert result.impressions == 1


def test_the_reward_is_clipped_for_each_impression_not_for_their_sum(deployment: Deployment) -> None:
    made = decision(1, at=MADE)
    actions = [("x", "repin"), ("x", "click"), ("x", "closeup"), ("x", "impression"), ("y", "repin"), ("y", "impression")]
    changed = deployment.change(maximum="1.25")
    events = [of(made, str(number), action, item_id=item) for number, (item, action) in enumerate(actions)]
    _, table = run(changed.settings, [made], events)
    assert table["reward"].to_pylist() == [1.25 + 1.0]


def test_the_same_action_on_the_same_impression_counts_once(deployment: Deployment) -> None:
    made = decision(1, at=MADE)
    events = [of(made, "1"), of(made, "2"), of(made, "3", "click"), of(made, "4", "click")]
    _, table = run(deployment.settings, [made], events)
    assert (table["impressions"].to_pylist(), table["reward"].to_pylist()) == ([1], [0.5])


def test_an_action_without_its_impression_is_no_impression(deployment: Deployment) -> None:
    made = decision(1, at=MADE)
    _, table = run(deployment.settings, [made], [of(made, "1", "repin", item_id="x"), of(made, "2", item_id="y")])
    assert (table["impressions"].to_pylist(), table["reward"].to_pylist()) == ([1], [0.0])


def test_duplicates_of_events_and_decisions_count_once(deployment: Deployment) -> None:
    decisions = [decision(number, at=MADE + number, drawn=[("a", "q1"), ("b", "q2")]) for number in range(6)]
    events = [of(made, f"{made.seed}-{item}", item_id=item) for made in decisions for item in "xy"]
    once, expected = run(deployment.settings, decisions, events)
    write_decisions(deployment.settings, decisions[:4], name="again")
    write_feedback(deployment.settings, events[3:], name="again")
    result, table = run(deployment.settings, [*decisions, decisions[1]], [*events, events[0]])
    assert table.equals(expected)
    assert (result.decisions, result.rows, result.impressions) == (once.decisions, once.rows, once.impressions) == (6, 12, 12)


def test_a_decision_whose_window_is_open_waits(deployment: Deployment) -> None:
    closed, closing, opened = decision(1, at=NOW - WINDOW - 1), decision(2, at=NOW - WINDOW), decision(3, at=NOW - WINDOW + 1)
    events = [of(made, str(made.seed)) for made in (closed, closing, opened)]
    result, table = run(deployment.settings, [closed, closing, opened], events)
    assert table["decision_id"].to_pylist() == [closed.decision_id, closing.decision_id]
    assert (result.decisions, result.waiting, result.dead_letters) == (2, 1, 0)
    later = join(deployment.settings, as_of=NOW + 1)
    assert (later.decisions, later.waiting, later.rows) == (3, 0, 3)


def test_every_reason_for_a_dead_letter(deployment: Deployment) -> None:
    made = decision(1, at=MADE, drawn=[("a", "q1"), ("b", "q2")])
    events = [
        of(made, "good"),
        of(made, "first", after=0),
        of(made, "last", after=WINDOW),
        of(made, "nobody", decision_id="00000000-0000-7000-8000-000000000000"),
        of(made, "stranger", user_id="another"),
        of(made, "cluster", cluster_id="b"),  # q1 was drawn, but from a
        of(made, "query", query_id="q2"),
        of(made, "unknown query", query_id="q9"),
        of(made, "early", after=-1),
        of(made, "late", after=WINDOW + 1),
    ]
    result, table = run(deployment.settings, [made], events)
    wrong = "the decision did not draw this query from this cluster"
    assert dead_letters(deployment.settings) == {
        "nobody": "no such decision",
        "stranger": "the decision was another user's",
        "cluster": wrong,
        "query": wrong,
        "unknown query": wrong,
        "early": "before the decision",
        "late": "after the attribution window",
    }
    assert result.dead_letters == 7
    assert sum(table["impressions"].to_pylist()) == result.impressions == 1  # the three good events are one impression of one item


def test_dead_letters_hold_the_whole_event(deployment: Deployment) -> None:
    made = decision(1, at=MADE)
    event = of(made, "bad", "click", user_id="another", item_id="some item")
    run(deployment.settings, [made], [of(made, "1"), event])
    (row,) = pq.read_table(deployment.settings.data_path / DEAD_LETTERS_FILE).to_pylist()
    assert {name: row[name] for name in ("decision_id", "user_id", "cluster_id", "query_id", "item_id", "action")} == {
        "decision_id": made.decision_id,
        "user_id": "another",
        "cluster_id": "c",
        "query_id": "q",
        "item_id": "some item",
        "action": "click",
    }
    assert round(row["occurred_at"].timestamp() * 1e6) == event.occurred_at


def test_events_after_the_reference_time_wait(deployment: Deployment) -> None:
    made = decision(1, at=MADE)
    events = [of(made, "1"), feedback("future", at=NOW + 1, decision_id="unknown")]
    assert run(deployment.settings, [made], events)[0].dead_letters == 0
    assert join(deployment.settings, as_of=NOW + 1).dead_letters == 1


def test_only_the_training_window_is_joined(deployment: Deployment) -> None:
    changed = deployment.change("[training]\nwindow_days = 10.0")
    old, new = decision(1, at=NOW - 10 * DAY), decision(2, at=NOW - 10 * DAY + 1)
    result, table = run(changed.settings, [old, new], [of(new, "1"), of(old, "2", after=0)])
    assert table["decision_id"].to_pylist() == [new.decision_id]
    assert (result.decisions, result.dead_letters) == (1, 0)


def test_feedback_on_a_decision_just_before_the_training_window_is_no_dead_letter(deployment: Deployment) -> None:
    changed = deployment.change("[training]\nwindow_days = 10.0")
    old, new = decision(1, at=NOW - 10 * DAY - MINUTE), decision(2, at=NOW - 9 * DAY)
    run(changed.settings, [old, new], [of(new, "1"), of(old, "2", after=HOUR)])
    assert dead_letters(changed.settings) == {}


def test_rows_of_another_feature_version_are_left_out(deployment: Deployment) -> None:
    decisions = [decision(1, at=MADE), decision(2, at=MADE, feature_version=FEATURE_VERSION + 1)]
    result, table = run(deployment.settings, decisions, [of(made, str(made.seed)) for made in decisions])
    assert table["decision_id"].to_pylist() == [decisions[0].decision_id]
    assert result.rows == 1


def test_a_decision_without_queries_makes_no_row(deployment: Deployment) -> None:
    result, table = run(deployment.settings, [decision(1, at=MADE, drawn=[])], [feedback("1", at=MADE)])
    assert table.num_rows == 0
    assert (result.decisions, result.dead_letters) == (1, 1)


def test_day_folders_before_the_window_are_not_read(deployment: Deployment) -> None:
    settings = deployment.settings
    made = decision(1, at=MADE)
    expected, _ = run(settings, [made], [of(made, "1")])
    oldest = f"{np.datetime64(MADE - 40 * DAY, 'us')}"[:10]
    first = f"{np.datetime64(NOW - round(settings.training.window_days) * DAY - settings.reward.attribution_window - MINUTE, 'us')}"[:10]
    for log in ("decisions", "feedback"):
        file = settings.data_path / log / oldest / "damaged.parquet"
        file.parent.mkdir()
        file.write_bytes(b"none of ours")
    assert join(settings, as_of=NOW) == expected
    write_feedback(settings, [of(made, "2", "click")], name=f"{first}/late")  # the first day folder that may hold something of the window
    assert join(settings, as_of=NOW).rows == 1
    assert read_reward(settings) == 0.5


def test_joining_again_gives_the_same_bytes(deployment: Deployment) -> None:
    drawn = [("b", "q1"), ("a", "q2"), ("d", "q3")]
    decisions = [decision(number, at=MADE + number % 50, user_id=f"u{number % 90}", drawn=drawn) for number in range(600)]
    events = [
        of(made, f"{made.seed}{item}{action}", action, item_id=item)
        for made in decisions
        for item in "xyz"
        for action in ("impression", "click")
    ]
    events += [of(made, f"dead{made.seed}", user_id="nobody") for made in decisions[:100]]
    run(deployment.settings, decisions, events)
    files = [examples_file(deployment.settings), deployment.settings.data_path / DEAD_LETTERS_FILE]
    first = [file.read_bytes() for file in files]
    run(deployment.settings, decisions, events)
    assert [file.read_bytes() for file in files] == first
    rng = np.random.default_rng(0)  # nor does the order of the logs matter
    run(deployment.settings, [decisions[i] for i in rng.permutation(600)], [events[i] for i in rng.permutation(len(events))])
    assert [file.read_bytes() for file in files] == first


def test_logs_that_are_empty_are_an_error_that_names_the_log(deployment: Deployment) -> None:
    with pytest.raises(EmptyLogError, match="the decision log is empty") as raised:
        join(deployment.settings, as_of=NOW)
    assert raised.value.place == str(deployment.settings.data_path / "decisions")
    write_decisions(deployment.settings, [decision(1, at=MADE)])
    with pytest.raises(EmptyLogError, match="the feedback log is empty"):
        join(deployment.settings, as_of=NOW)
    assert not examples_file(deployment.settings).exists()


def test_feedback_with_naive_times_is_refused(deployment: Deployment) -> None:
    write_decisions(deployment.settings, [decision(1, at=MADE)])
    file = write_feedback(deployment.settings, [feedback("1", at=MADE)])
    pq.write_table(naive(pq.read_table(file), "occurred_at"), file)
    with pytest.raises(InvalidTableError, match="no time zone") as raised:
        join(deployment.settings, as_of=NOW)
    assert raised.value.file == str(file)
    assert "data/quarantine" in str(raised.value)
