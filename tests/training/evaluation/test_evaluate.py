"""Evaluation from the command line: real foreign logs, bad input, and the deployment's own log from decision to verdict."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bandit.errors import EmptyLogError, InvalidTableError, Status
from bandit.rewards.scheme import RewardScheme
from query_rewards import main
from tests.conftest import Deployment
from tests.open_bandit import FILE
from tests.strategies import thresholds
from training.evaluation.evaluate import LOGGED, DecisionFilter, Target, evaluate_log
from training.evaluation.foreign.read import read_foreign
from training.evaluation.foreign_logs import evaluate_file
from training.models.outcomes import OUTCOMES, outcomes_writer

DSJSON = Path(__file__).parents[2] / "data" / "vowpal" / "decisionservice.json"
SCHEME = RewardScheme(weights={"repin": 1.0}, minimum=0.0, maximum=1.0)


@pytest.fixture
def run(monkeypatch, capfd):
    def ran(*arguments):
        monkeypatch.setattr(sys, "argv", ["query-rewards", *(str(argument) for argument in arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capfd.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return ran


@pytest.mark.parametrize(("campaign", "ess"), [("men", 656), ("women", 2)])
def test_t3_from_the_command_line_the_log_is_refused_with_status_3_and_its_effective_sample_size(run, campaign, ess):
    filters = ("--where", f"campaign={campaign}", "--where", "behavior_policy=bts")
    status, out, err = run("evaluate", "--logs", FILE, *filters, "--policy", "uniform", "--json")
    found = json.loads(out)
    assert status == Status.NOT_PROMOTED
    assert found["verdict"] == "cannot tell"
    assert any(f"effective sample size {ess} of 10,000" in reason for reason in found["reasons"])
    assert found["diagnostics"]["effective_sample_size"] == pytest.approx(ess, abs=0.5)
    assert f"effective sample size {ess}" in err


def test_the_three_decisions_of_vowpal_wabbits_dsjson_test_are_read_with_their_probabilities():
    log = read_foreign(DSJSON)
    np.testing.assert_allclose(log.rows["probability"], [0.8166667] * 3)
    np.testing.assert_array_equal(log.rows["reward"], [1.0, 0.0, 1.0])
    np.testing.assert_array_equal(log.rows["actions"], [12.0] * 3)
    found = evaluate_file(DSJSON, "uniform", [], "0,1", thresholds())
    assert found.verdict == "cannot tell"
    assert found.values["ips"]["value"] == pytest.approx((2 / 12) / 0.8166667 / 3)
    assert evaluate_file(DSJSON, "logged", [], "0,1", thresholds()).values["ips"]["value"] == pytest.approx(2 / 3)


def plain(folder: Path, **columns) -> Path:
    rows = 3000
    rng = np.random.default_rng(0)
    table = {
        "action": ["a"] * rows,
        "probability": np.full(rows, 0.5),
        "reward": rng.random(rows),
        "actions": np.full(rows, 2.0),
        "decision_id": [str(number) for number in range(rows)],
    }
    file = folder / "log.parquet"
    pq.write_table(pa.table({**table, **columns}), file)
    return file


def test_a_plain_table_with_the_targets_own_probabilities_gets_a_verdict(run, tmp_path):
    rng = np.random.default_rng(1)
    good = rng.random(20_000) < 0.5
    file = tmp_path / "log.parquet"
    columns = {"action": good, "probability": np.full(20_000, 0.5), "reward": np.where(good, 0.9, 0.1)}
    pq.write_table(pa.table({**columns, "target_probability": np.where(good, 0.8, 0.2)}), file)
    status, out, _ = run("evaluate", "--logs", file, "--policy", "column", "--json", "--report", tmp_path / "page.html")
    found = json.loads(out)
    assert (status, found["verdict"]) == (0, "better")
    assert found["values"]["snips"]["value"] == pytest.approx(0.8 * 0.9 + 0.2 * 0.1, rel=0.02)
    assert "better" in (tmp_path / "page.html").read_text()
    pq.write_table(pa.table({**columns, "target_probability": np.where(good, 0.2, 0.8)}), file)
    status, out, _ = run("evaluate", "--logs", file, "--policy", "column", "--json")
    assert (status, json.loads(out)["verdict"]) == (Status.NOT_PROMOTED, "not better")


def at(row, value, length=3000, usual=0.5):
    array = np.full(length, usual)
    array[row] = value
    return array


@pytest.mark.parametrize(
    ("columns", "column", "row"),
    [
        ({"probability": at(7, 0.0)}, "probability", 7),
        ({"probability": at(8, -0.5)}, "probability", 8),
        ({"probability": at(9, np.nan)}, "probability", 9),
        ({"probability": at(10, 1.5)}, "probability", 10),
        ({"reward": at(11, 1.5)}, "reward", 11),
        ({"reward": at(12, np.nan)}, "reward", 12),
    ],
)
def test_what_a_plain_log_cannot_hold_is_refused_with_file_column_and_row(run, tmp_path, columns, column, row):
    file = plain(tmp_path, **columns)
    with pytest.raises(InvalidTableError) as caught:
        evaluate_file(file, "uniform", [], "0,1", thresholds())
    assert (caught.value.file, caught.value.column, caught.value.row) == (str(file), column, row)
    status, out, err = run("evaluate", "--logs", file, "--policy", "uniform")
    assert (status, out) == (Status.FAILED, "")
    assert f"column '{column}', row {row}" in err


def test_duplicates_count_once_and_are_said_and_an_empty_log_is_an_error(tmp_path):
    file = plain(tmp_path, decision_id=[str(number // 2) for number in range(3000)])
    found = evaluate_file(file, "uniform", [], "0,1", thresholds())
    assert found.decisions == 1500
    assert found.notes == ["1,500 of 3,000 rows were left out: a later copy of the same decision counts"]
    pq.write_table(pq.read_table(file).slice(0, 0), file)
    with pytest.raises(EmptyLogError, match="foreign log"):
        evaluate_file(file, "uniform", [], "0,1", thresholds())


def test_a_log_that_does_not_say_what_a_target_needs_is_refused_by_name(run, tmp_path):
    file = plain(tmp_path)
    for policy, text, status in (("column", "target_probability", Status.FAILED), ("bandit", "uniform", Status.USAGE)):
        ran, _, err = run("evaluate", "--logs", file, "--policy", policy)
        assert (ran, text in err) == (status, True)
    assert run("evaluate", "--logs", file, "--where", "nothing=1")[0] == Status.FAILED
    assert run("evaluate", "--logs", file, "--reward-range", "1,0")[0] == Status.USAGE


def outcomes(file: Path, rows: int = 4000, *, seed: int = 0, change=lambda columns: None, metadata=None) -> Path:
    """A file of outcomes as `join` writes it: 4 candidates, 2 queries, the first two clusters better than the others."""
    rng = np.random.default_rng(seed)
    quotas = np.tile([0.5, 0.5, 0.5, 0.5], (rows, 1))
    first = rng.integers(0, 2, rows)
    second = rng.integers(2, 4, rows)
    drawn = np.stack((first, second), axis=1).astype(np.int32)
    rewards = (rng.random((rows, 2)) < np.array([0.6, 0.2])).astype(float)
    cells = {name: np.zeros((rows, 4)) for name in ("topic_ids", "importance", "impressions_session", "reward_session", "draws_session")}
    columns = {
        "decision_id": [str(number) for number in range(rows)],
        "user_id": [f"u{number % 300}" for number in range(rows)],
        "decided_at": np.arange(rows),
        "policy": ["uniform"] * rows,
        "model_version": [""] * rows,
        "arm": [""] * rows,
        "k": np.full(rows, 2, np.int32),
        "quotas": quotas,
        "caps": np.full((rows, 4), 2.0),
        "drawn": drawn,
        "draws": np.ones((rows, 2), np.int32),
        "shown": np.ones((rows, 2), np.int32),
        "rewards": rewards,
        "rates": np.tile([0.5, 0.5, 0.2, 0.2], (rows, 1)),
        "features": np.zeros((rows, 0)),
        "actions": np.tile([3.0, 3.0, 1.0, 1.0], (rows, 1)),
        "impressions_long": np.zeros((rows, 4)),
        "reward_long": np.zeros((rows, 4)),
        **cells,
        "totals": np.zeros((rows, 8)),
    }
    change(columns)
    arrays = [pa.array(list(columns[field.name]), field.type) for field in OUTCOMES]
    with outcomes_writer(file, metadata or {}) as writer:
        writer.write_table(pa.table(arrays, OUTCOMES), row_group_size=1000)
    return file


def evaluated(file: Path, policy: str, **options):
    target = Target(label=policy, policy=policy)
    return evaluate_log(file, target, Target(label=LOGGED, policy=LOGGED), thresholds(), SCHEME, rng=np.random.default_rng(0), **options)


def test_quotas_of_the_target_are_computed_from_the_log_and_a_better_policy_is_found_better(tmp_path):
    found = evaluated(outcomes(tmp_path / "a.parquet"), "action_count")
    assert found.verdict == "better"
    assert found.decisions == 4000
    for name in ("ips", "snips", "dr", "sndr", "switch", "clipped"):
        assert found.values[name]["value"] == pytest.approx(1.5 * 0.6 + 0.5 * 0.2, rel=0.05), name
        assert found.baseline_values[name]["value"] == pytest.approx(0.8, rel=0.05)
    assert found.diagnostics["agreement"] == pytest.approx(0.75)
    assert found.audit["chi_squared_p"] > 0.01
    same = evaluated(tmp_path / "a.parquet", "uniform")
    assert same.verdict == "not better"  # it is the policy that logged
    assert same.lift["high"] == 0.0


def test_processes_share_a_log_and_say_what_one_says(tmp_path):
    file = outcomes(tmp_path / "a.parquet")
    one, two = evaluated(file, "action_count"), evaluated(file, "action_count", processes=2)
    assert one == two


def put(name, row, value):
    def change(columns):
        columns[name] = np.array(columns[name], float)
        columns[name][row] = value

    return change


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (put("quotas", (5, 1), 0.0), "sum to 1.5, expected 2|propensity is 0"),
        (put("quotas", (5, 1), -0.5), "propensity is -0.5"),
        (put("quotas", (5, 1), np.nan), "propensity is nan"),
        (put("quotas", (5, 1), 2.5), "at most 2"),
        (put("quotas", 5, [0.6, 0.6, 0.6, 0.6]), "sum to 2.4, expected 2"),
        (put("rewards", (5, 1), 1.5), r"1.5 over 1 impressions.*expected within \[0, 1\]"),
        (put("rewards", (5, 1), -0.5), "-0.5 over 1 impressions"),
    ],
)
def test_what_the_own_log_cannot_hold_is_refused(tmp_path, change, text):
    with pytest.raises(InvalidTableError, match=text):
        evaluated(outcomes(tmp_path / "a.parquet", change=change), "action_count")


@pytest.mark.parametrize("options", [{}, {"processes": 2}, {"only": DecisionFilter(after=999)}, {"only": DecisionFilter(after=2400)}])
@pytest.mark.parametrize(("change", "column"), [(put("quotas", (2503, 1), 0.75), "quotas"), (put("rewards", (2503, 1), 1.5), "rewards")])
def test_an_error_names_the_row_of_the_file_in_whichever_row_group_it_lies(tmp_path, change, column, options):
    """A row group has 1,000 rows; decisions that do not count are rows of the file all the same."""
    with pytest.raises(InvalidTableError) as caught:
        evaluated(outcomes(tmp_path / "a.parquet", change=change), "action_count", **options)
    assert (caught.value.column, caught.value.row) == (column, 2503)


def test_a_decision_at_the_moment_that_taught_a_model_does_not_count_and_the_next_does(tmp_path):
    file = outcomes(tmp_path / "a.parquet")  # one decision a microsecond, from 0 on
    found = evaluated(file, "action_count", only=DecisionFilter(after=1500))
    assert found.decisions == 2499
    assert found.notes == ["only decisions after 1970-01-01 00:00 count: those before taught a model"]
    none = evaluated(file, "action_count", only=DecisionFilter(after=3999))
    assert (none.decisions, none.verdict) == (0, "cannot tell")
    assert none.reasons[0] == "no decision is later than those that taught the models"


def test_the_model_of_the_reward_is_a_line_through_the_shrunk_rates_weighted_by_draws(tmp_path):
    """`dm` is that model alone: 1.5 draws at rate 0.5 and 0.5 at rate 0.2, by a line that NumPy fits to the log."""
    rng = np.random.default_rng(4)
    draws = rng.integers(1, 4, (4000, 2))
    rates = np.tile([0.5, 0.6, 0.2, 0.3], (4000, 1))

    def change(columns):
        rate = np.take_along_axis(rates, columns["drawn"], axis=1)
        columns |= {
            "rates": rates,
            "draws": draws,
            "shown": draws,
            "rewards": draws * (0.1 + 0.8 * rate) * rng.uniform(0.5, 1.5, rate.shape),
        }

    file = outcomes(tmp_path / "a.parquet", change=change)
    table = pq.read_table(file)
    drawn, reward = (np.array(table[name].to_pylist()) for name in ("drawn", "rewards"))
    rate, count = np.take_along_axis(rates, drawn, axis=1).ravel(), draws.ravel()
    slope, intercept = np.polyfit(rate, reward.ravel() / count, 1, w=np.sqrt(count))
    assert slope == pytest.approx(0.8, rel=0.1)
    expected = [intercept + slope * value for value in (0.5, 0.6, 0.2, 0.3)]
    found = evaluated(file, "action_count", estimators=("dm",))
    assert found.values["dm"]["value"] == pytest.approx(0.75 * (expected[0] + expected[1]) + 0.25 * (expected[2] + expected[3]), rel=1e-5)
    assert found.baseline_values["dm"]["value"] == pytest.approx(0.5 * sum(expected), rel=1e-5)


def test_clusters_that_the_log_never_had_and_drawn_counts_that_contradict_the_quotas_are_reasons_not_to_tell(tmp_path):
    def never(columns):
        columns["quotas"] = np.tile([1.0, 0.0, 1.0, 0.0], (4000, 1))
        columns["drawn"] = np.tile(np.array([0, 2], np.int32), (4000, 1))

    found = evaluated(outcomes(tmp_path / "a.parquet", change=never), "uniform")
    assert found.verdict == "cannot tell"
    assert any("the log never had: 50.0% of its queries in 100.0% of the decisions" in reason for reason in found.reasons)

    def biased(columns):
        columns["drawn"] = np.tile(np.array([0, 2], np.int32), (4000, 1))
        columns["quotas"] = np.tile([0.7, 0.3, 0.7, 0.3], (4000, 1))

    found = evaluated(outcomes(tmp_path / "b.parquet", change=biased), "action_count")
    assert found.verdict == "cannot tell"
    assert any("contradicts its propensities" in reason for reason in found.reasons)


def test_decisions_of_another_feature_version_are_left_out_and_said(tmp_path):
    found = evaluated(outcomes(tmp_path / "a.parquet", metadata={b"other_version": b"12"}), "action_count")
    assert any("12 decisions of another feature version" in note for note in found.notes)
    with pytest.raises(EmptyLogError, match="12 decisions of another feature version"):
        evaluated(outcomes(tmp_path / "b.parquet", rows=0, metadata={b"other_version": b"12"}), "action_count")


def test_without_outcomes_the_deployment_says_so(run, learning: Deployment):
    status, _, err = run("evaluate", "--settings", learning.settings_file, "--policy", "uniform")
    assert status == Status.FAILED
    assert "query-rewards join" in err
    status, _, err = run("evaluate", "--settings", learning.settings_file)
    assert (status, "query-rewards train" in err) == (Status.NOT_PROMOTED, True)
