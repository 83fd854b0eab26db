"""From a served decision to its explanation, and from arms to a report, through the real path."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from bandit.errors import InvalidSettingError, InvalidValueError, Status, UnknownDecisionError
from bandit.ope.sample_ratio import sample_ratio_p
from bandit.policy.arms import arm_of
from bandit.records import Query
from bandit.settings.load import DEFAULT_FILE, load_settings
from examples import recipes
from query_rewards import main
from serving.modes import Existing
from tests.served_world import QUIET, REWARDED, UNKNOWN, Served
from tests.tables_made import DAY, MINUTE, NOW, feedback, write_feedback
from training.evaluation.experiment import by_user, report
from training.evaluation.explain import SAME, as_text, explain
from training.evaluation.gate import evaluate
from training.logs.archive import move_logs
from training.models.join import join

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    def ran(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["query-rewards", *(str(argument) for argument in arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capfd.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return ran


def test_every_decision_of_the_story_is_repeated_to_the_last_bit_and_the_gate_cannot_tell(
    tmp_path: Path, empty_redis: str, run: Run
) -> None:
    recipes.play(tmp_path, empty_redis, "bandit", rounds=2)
    file = tmp_path / DEFAULT_FILE
    settings = load_settings(file)
    table = ds.dataset(tmp_path / "data" / "decisions").to_table(columns=["decision_id", "policy"])
    some = {policy: [] for policy in ("query_reward", "bandit")}
    for row in table.to_pylist():
        some[row["policy"]].append(row["decision_id"])
    for ids in some.values():
        for decision_id in ids[:3]:
            found = explain(settings, decision_id)
            assert found.recomputed == SAME
            assert {query["cluster_id"] for query in found.queries} <= {one["cluster_id"] for one in found.candidates}
    status, out, _ = run("explain", some["bandit"][0], "--settings", file)
    assert status == 0
    assert f"recomputed from features, seed and model: {SAME}" in out
    assert "gives" in out
    assert run("explain", some["bandit"][0], "--settings", file, "--json")[0] == 0
    assert run("explain", "nothing", "--settings", file)[0] == Status.FAILED
    with pytest.raises(UnknownDecisionError):
        explain(settings, "nothing")

    status, out, err = run("evaluate", "--settings", file, "--json", "--report", tmp_path / "page.html")
    assert status == Status.NOT_PROMOTED
    assert json.loads(out)["verdict"] == "cannot tell"
    assert "no decision is later than those that taught the models" in err
    page = (tmp_path / "page.html").read_text()
    assert "Reward maturity" in page
    found = evaluate(settings, policy="uniform", against="logged")
    assert found.decisions > 0
    assert found.diagnostics["mean_weight"] > 0.0
    status, _, err = run("promote", "--settings", file, "--version", "1")
    assert status in (0, Status.NOT_PROMOTED)  # the gate is off in the story


def query(served: Served, user: str, cluster: int, propensity: float = 0.5) -> Query:
    return Query(item_id=f"{user}-c{cluster}-i0", cluster_id=f"{user}-c{cluster}", propensity=propensity)


@pytest.fixture
def world(tmp_path_factory: pytest.TempPathFactory, redis_url: str, plain_environment: None) -> Served:
    from tests.served_world import make  # noqa: PLC0415
    from training.local_redis import local_redis  # noqa: PLC0415

    with local_redis() as url:
        yield make(tmp_path_factory.mktemp("modes") / "deployment", url)


@pytest.mark.parametrize("mode", ["log_only", "apprentice"])
def test_your_own_choice_is_served_and_logged_with_its_propensities(world: Served, mode: str) -> None:
    user = REWARDED[0]
    choice = Existing(queries=[query(world, user, 0), query(world, user, 2)], quotas={f"{user}-c0": 1.2, f"{user}-c2": 0.8})
    file = world.settings_file("query_reward")
    file.write_text(file.read_text().replace("[serving]", f'[serving]\nmode = "{mode}"'))
    from serving import QuerySelector  # noqa: PLC0415

    with QuerySelector.open(file) as selector:
        selection = selector.select(user, 2, existing=choice, now=NOW, seed=1)
        assert list(selection.queries) == list(choice.queries)
        unknown = selector.select(UNKNOWN, 2, existing=choice, now=NOW, seed=1)
        assert (list(unknown.queries), unknown.logged) == (list(choice.queries), False)
        with pytest.raises(InvalidValueError, match="existing"):
            selector.select(user, 2, now=NOW, seed=1)
    (decision,) = world.decisions()
    assert (decision.policy, decision.mode, decision.k) == ("existing", mode, 2)
    quotas = dict(zip(decision.cluster_ids, decision.quotas, strict=True))
    assert quotas == {**dict.fromkeys(decision.cluster_ids, 0.0), **choice.quotas}
    with world.open() as online, pytest.raises(InvalidValueError, match="existing"):
        online.select(user, 2, existing=choice, now=NOW, seed=1)

    settings = load_settings(file)
    assert move_logs(settings).decisions == 1
    at = {"decision_id": decision.decision_id, "user_id": user, "query_id": f"{user}-c0-i0", "cluster_id": f"{user}-c0"}
    write_feedback(settings, [feedback("e1", at=NOW + MINUTE, **at), feedback("e2", at=NOW + MINUTE, action="repin", **at)])
    join(settings, as_of=NOW + 2 * DAY)
    found = evaluate(settings, policy="query_reward", against="logged")
    assert 0.0 < found.diagnostics["agreement"] < 1.0  # how far the bandit's side would have chosen the same
    assert found.baseline_values["ips"]["value"] == pytest.approx(1.0)


@pytest.mark.parametrize("mode", ["log_only", "apprentice"])
def test_quotas_of_your_own_above_our_caps_raise_the_logged_caps_and_no_others(world: Served, mode: str) -> None:
    """The last cluster has one item: whatever it gets beyond one query came from elsewhere, and the log must allow for it."""
    user = REWARDED[0]
    few, many = f"{user}-c5", f"{user}-c1"  # of 1 and of 6 items
    choice = Existing(queries=[query(world, user, 1), query(world, user, 5)], quotas={few: 1.5, many: 0.5})
    file = world.settings_file("query_reward")
    file.write_text(file.read_text().replace("[serving]", f'[serving]\nmode = "{mode}"'))
    from serving import QuerySelector  # noqa: PLC0415

    with QuerySelector.open(file) as selector:
        selector.select(user, 2, existing=choice, now=NOW, seed=1)
    (decision,) = world.decisions()
    caps = dict(zip(decision.cluster_ids, decision.caps, strict=True))
    assert caps == {f"{user}-c{number}": float(most) for number, most in enumerate((10, 6, 4, 3, 2))} | {few: 1.5}


@pytest.mark.parametrize(
    ("quotas", "text"), [({"a": 0.0, "b": 1.0}, "quota of cluster"), ({"a": 1.0}, "quota of cluster 'b'"), ({"a": 4.0, "b": 1.0}, "sum")]
)
def test_a_choice_that_its_quotas_cannot_have_made_is_refused(quotas: dict[str, float], text: str) -> None:
    queries = [Query(item_id="i", cluster_id="a", propensity=0.5), Query(item_id="j", cluster_id="b", propensity=0.5)]
    with pytest.raises(InvalidValueError, match=text):
        Existing(queries=queries, quotas=quotas)


def test_users_stay_in_their_arm_and_arms_have_their_shares() -> None:
    shares = {"control": 0.3, "treatment": 0.5}
    users = [f"user-{number}" for number in range(20_000)]
    arms = [arm_of(user, "salt", shares) for user in users]
    assert arms == [arm_of(user, "salt", shares) for user in users]
    counts = {arm: arms.count(arm) / len(users) for arm in ("control", "treatment", "")}
    assert counts == pytest.approx({"control": 0.3, "treatment": 0.5, "": 0.2}, abs=0.015)
    other = [arm_of(user, "pepper", shares) for user in users]
    both = sum(a == b == "control" for a, b in zip(arms, other, strict=True)) / len(users)
    assert both == pytest.approx(0.09, abs=0.01)  # another salt is an independent split
    assert sample_ratio_p([arms.count(arm) for arm in shares], list(shares.values())) > 0.001
    assert sample_ratio_p([3000, 4000], [0.5, 0.5]) < 1e-9
    assert sample_ratio_p([0, 0], [0.5, 0.5]) == 1.0


def test_an_experiment_reports_what_each_arm_earned(world: Served, run: Run) -> None:
    file = world.settings_file("query_reward")
    arms = '[experiment.arms.a]\nshare = 0.5\npolicy = "uniform"\n[experiment.arms.b]\nshare = 0.5\npolicy = "query_reward"\n'
    file.write_text(file.read_text() + '[experiment]\nsalt = "s"\n' + arms)
    settings = load_settings(file)
    from serving import QuerySelector  # noqa: PLC0415

    events = []
    with QuerySelector.open(file) as selector:
        for number in range(20):
            for user in (*REWARDED, QUIET):
                selection = selector.select(user, 2, now=NOW + number, seed=number)
                expected = {"a": "uniform", "b": "query_reward"}[arm_of(user, "s", settings.experiment.shares())]
                assert selection.policy == expected
                for place, one in enumerate(selection.queries):
                    at = {"decision_id": selection.decision_id, "user_id": user, "query_id": one.item_id, "cluster_id": one.cluster_id}
                    events.append(feedback(f"{len(events)}", at=NOW + MINUTE, **at))
                    if place == 0:
                        events.append(feedback(f"{len(events)}", at=NOW + MINUTE, action="repin", **at))
    write_feedback(settings, events)
    move_logs(settings)
    join(settings, as_of=NOW + 2 * DAY)
    status, out, _ = run("experiment", "--settings", file, "--json")
    found = json.loads(out)
    assert status == 0
    assert sum(arm["requests"] for arm in found["arms"].values()) == 80
    for arm in found["arms"].values():
        if arm["users"]:
            assert arm["reward_per_request"]["value"] == pytest.approx(1.0)
            assert arm["reward_per_impression"]["value"] == pytest.approx(0.5)
    with pytest.raises(InvalidSettingError, match="no experiment"):
        report(world.settings())


def test_sums_by_user_count_requests_without_any_reward() -> None:
    lists = pa.array([[1], [], [2, 2]], pa.list_(pa.int32()))
    table = pa.table({"user_id": ["u", "u", "v"], "arm": ["a", "a", "b"], "shown": lists, "rewards": lists.cast(pa.list_(pa.float64()))})
    rows = {row["user_id"]: row for row in by_user(table).to_pylist()}
    assert (rows["u"]["reward_sum"], rows["u"]["reward_count"]) == (1.0, 2)
    assert (rows["v"]["shown_sum"], rows["v"]["reward_count"]) == (4.0, 1)
    assert np.isfinite(rows["v"]["reward_sum"])


def test_an_explanation_for_people_names_every_candidate(world: Served) -> None:
    with world.open() as selector:
        selection = selector.select(REWARDED[1], 3, now=NOW, seed=5)
    settings = world.settings()
    move_logs(settings)
    found = explain(settings, selection.decision_id)
    text = as_text(found)
    assert found.recomputed == SAME
    assert all(one["cluster_id"] in text for one in found.candidates)
