"""Settings: one frozen object, unknown keys refused, the environment wins over the file."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import typing
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

import bandit.settings.sections as sections_module
from bandit.errors import InvalidSettingError
from bandit.settings.load import Settings, load_settings


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    for variable in [name for name in os.environ if name.upper().startswith("QUERY_REWARDS_")]:
        monkeypatch.delenv(variable)


@pytest.fixture
def write(tmp_path):
    def text(content: str) -> Path:
        file = tmp_path / "query_rewards.toml"
        file.write_text(content, encoding="utf-8")
        return file

    return text


def refused(file: Path) -> InvalidSettingError:
    with pytest.raises(InvalidSettingError) as caught:
        load_settings(file)
    return caught.value


def test_an_empty_file_gives_every_default(write):
    settings = load_settings(write(""))
    assert settings.model_dump() == Settings().model_dump()
    assert settings.policy.name == "bandit"
    assert settings.policy.exploration().budget == settings.policy.exploration_budget
    assert settings.reward.half_lives().session == 30 * 60 * 1_000_000
    assert settings.reward.attribution_window == 24 * 3600 * 1_000_000
    assert settings.stream.window == 48 * 3600 * 1_000_000
    assert settings.feedback_validator().window == settings.stream.window


def test_the_file_overrides_the_defaults_and_leaves_the_rest(write):
    settings = load_settings(write('redis_url = "redis://a:1/2"\n[policy]\nname = "uniform"\n'))
    assert (settings.redis_url, settings.policy.name) == ("redis://a:1/2", "uniform")
    assert settings.policy.optimism == Settings().policy.optimism


def test_paths_are_relative_to_the_folder_of_the_file(write, tmp_path):
    settings = load_settings(write('data = "logs"\n'))
    assert settings.data_path == tmp_path / "logs"
    assert settings.feature_repo_path == tmp_path / "feature_repo"
    absolute = tmp_path / "elsewhere"
    assert load_settings(write(f'data = "{absolute}"\n')).data_path == absolute


def test_the_environment_wins_over_the_file_and_leaves_the_other_keys_of_its_section(write, monkeypatch):
    file = write('redis_url = "redis://a:1/2"\n[policy]\nname = "uniform"\noptimism = 2.5\n')
    monkeypatch.setenv("QUERY_REWARDS_POLICY__NAME", "importance")
    monkeypatch.setenv("QUERY_REWARDS_REDIS_URL", "redis://b:3/4")
    monkeypatch.setenv("QUERY_REWARDS_TRAINING__SEED", "9")
    settings = load_settings(file)
    assert (settings.policy.name, settings.policy.optimism) == ("importance", 2.5)
    assert settings.redis_url == "redis://b:3/4"
    assert settings.training.seed == 9


@pytest.mark.parametrize(
    ("content", "key", "near"),
    [
        ('[policy]\nnmae = "uniform"\n', "policy.nmae", "policy.name"),
        ("[reward]\nmaximun = 1.0\n", "reward.maximun", "reward.maximum"),
        ('redis_ulr = "x"\n', "redis_ulr", "redis_url"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(write, content, key, near):
    error = refused(write(content))
    assert error.key == key
    assert error.source.endswith("query_rewards.toml")
    assert repr(near) in error.problem


def test_an_unknown_variable_is_refused_with_the_nearest_known_one(write, monkeypatch):
    monkeypatch.setenv("QUERY_REWARDS_POLICY__NMAE", "uniform")
    error = refused(write(""))
    assert error.source == error.key == "QUERY_REWARDS_POLICY__NMAE"
    assert error.problem.endswith("QUERY_REWARDS_POLICY__NAME")


@pytest.mark.parametrize(
    ("content", "key", "received"),
    [
        ('[policy]\noptimism = "much"\n', "policy.optimism", "much"),
        ('[policy]\nname = "greedy"\n', "policy.name", "greedy"),
        ("[policy]\nexploration_budget = 0.0\n", "policy.exploration_budget", "0.0"),
        ("[policy]\nprior_strength = nan\n", "policy.prior_strength", "nan"),
        ("[stream]\nwindow_hours = 0.0\n", "stream.window_hours", "0.0"),
        ("[stream]\nmax_backlog = 0\n", "stream.max_backlog", "0"),
        ("[stream]\nlease_seconds = -1.0\n", "stream.lease_seconds", "-1.0"),
        ("[training]\nminimum_rows = 1.5\n", "training.minimum_rows", "1.5"),
        ("policy = 3\n", "policy", "3"),
        ("[intake]\ntolerate = 1.5\n", "intake.tolerate", "1.5"),
        *((f'{key} = "{url}"\n', key, url) for key in ("data", "feature_repo") for url in ("s3://bucket/qr", "gs://b", "file:///srv/qr")),
        ('data = "$HOME/qr"\n', "data", "variables are not replaced"),
        ('data = "~nobody-of-this-name/qr"\n', "data", "no home folder"),
        ('data = ""\n', "data", "expected a path"),
        ("[reward.weights]\nrepin = 9.0\n", "reward", "repin"),
        ("[reward]\nminimum = 0.5\n", "reward", "0.5"),
    ],
)
def test_a_bad_value_is_refused_with_its_key_and_what_was_received(write, content, key, received):
    error = refused(write(content))
    assert error.key == key
    assert error.source.endswith("query_rewards.toml")
    assert received in error.problem


def test_a_bad_value_of_a_variable_is_refused_with_the_name_of_the_variable(write, monkeypatch):
    monkeypatch.setenv("QUERY_REWARDS_POLICY__OPTIMISM", "much")
    error = refused(write(""))
    assert (error.source, error.key) == ("QUERY_REWARDS_POLICY__OPTIMISM", "policy.optimism")


def test_a_variable_that_is_no_json_where_a_table_belongs_is_refused_with_its_name(write, monkeypatch):
    monkeypatch.setenv("QUERY_REWARDS_REWARD__WEIGHTS", '{"repin": 0.5, "hide": -1.0}')
    assert load_settings(write("")).reward.weights["repin"] == 0.5
    monkeypatch.setenv("QUERY_REWARDS_REWARD__WEIGHTS", "{repin")
    assert "QUERY_REWARDS_REWARD__WEIGHTS" in str(refused(write("")))


def test_a_missing_file_says_how_to_make_one(tmp_path):
    error = refused(tmp_path / "none.toml")
    assert error.source == str(tmp_path / "none.toml")
    assert "query-rewards init" in error.problem


@pytest.mark.parametrize("content", [b"[policy\n", b"a = \n", b"a = '\xff'\n", b"a = 1\na = 2\n"])
def test_a_file_that_is_no_toml_is_refused_by_name(tmp_path, content):
    file = tmp_path / "query_rewards.toml"
    file.write_bytes(content)
    with pytest.raises(InvalidSettingError, match=re.escape(f"{file}: setting '': not a TOML file")):
        load_settings(file)


def test_the_home_folder_is_expanded_and_every_other_character_stands_for_itself(write):
    settings = load_settings(write('data = "~/qr"\nfeature_repo = "user_id=ann/[1]*?/C:/x$y"\n'))
    assert settings.data_path == Path.home() / "qr"
    assert settings.feature_repo_path.as_posix().endswith("user_id=ann/[1]*?/C:/x$y")


def test_settings_and_their_sections_are_frozen(write):
    settings = load_settings(write(""))
    with pytest.raises(ValidationError, match="frozen"):
        settings.redis_url = "x"
    with pytest.raises(ValidationError, match="frozen"):
        settings.policy.name = "uniform"


def test_two_writers_are_not_the_default(write):
    assert load_settings(write("")).stream.enabled is False


def test_feedback_may_have_the_actions_that_have_a_weight_and_impressions(write):
    """Weights of the file are added to the default ones."""
    validator = load_settings(write("[reward.weights]\nsave = 1.0\n[stream]\nwindow_hours = 2.0\n")).feedback_validator()
    assert set(validator.actions) == {"impression", "save", *Settings().reward.weights}
    assert validator.window == 2 * 3600 * 1_000_000


def test_the_sections_alone_have_defaults():
    """The records that sections build have none, so that a value that is not a setting's cannot slip in."""
    sections = [
        kind for kind in vars(sections_module).values() if isinstance(kind, type) and issubclass(kind, BaseModel) and kind is not BaseModel
    ]
    methods = [
        method
        for section in [*sections, Settings]
        for method in vars(section).values()
        if inspect.isfunction(method) and method.__module__ == section.__module__
    ]
    built = {kind for method in methods if dataclasses.is_dataclass(kind := typing.get_type_hints(method).get("return"))}
    assert {"Exploration", "FeedbackValidator", "Gate", "Learner", "RewardScheme", "Rules"} <= {kind.__name__ for kind in built}
    with_default = [
        f"{kind.__name__}.{field.name}"
        for kind in built
        for field in dataclasses.fields(kind)
        if (field.default, field.default_factory) != (dataclasses.MISSING, dataclasses.MISSING)
    ]
    assert with_default == []
