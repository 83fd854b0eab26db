"""Options of the learner: those that are possible export what Vowpal Wabbit predicts, all others are refused when settings are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bandit.model.vowpal
from bandit.errors import ExportMismatchError, InvalidSettingError, InvalidValueError
from bandit.model.learner_options import COUNTS, FLAGS, LOSSES, NUMBERS, refusal
from bandit.model.vowpal import fit
from bandit.settings.load import load_settings
from tests.strategies import learner

NAMES = ["first", "second", "third", "größe"]
VALUES = {"--quantile_tau": "0.7", "--expectile_q": "0.3", "--initial_weight": "0.01", "--constant": "0.1", "-C": "0.1"}
NEEDS = {
    **dict.fromkeys(("--bfgs", "--conjugate_gradient"), "--passes 3 -c -k"),
    **dict.fromkeys(("--passes", "--early_terminate", "-k", "--kill_cache"), "-c"),
    "--ftrl_alpha": "--coin",
    "--ftrl_beta": "--coin",
    "--quantile_tau": "--loss_function quantile",
    "--expectile_q": "--loss_function expectile",
    "--loss_function expectile": "--expectile_q 0.3",
}
REFUSED = [
    *(
        "--l1 1e-3",
        "--l2 1e-3",
        "--coin --interactions ccc",
        "--cubic ccc",
        "-q cd",
        "--quadratic cc",
        "--nn 3",
        "--boosting 5",
        "--lrq cc3",
    ),
    *("--autolink 2", "--stage_poly", "--permutations", "--ngram 2", "--bootstrap 3", "-t", "--oaa 3", "--link logistic", "--rank 2"),
    *(
        "-b 20",
        "--bit_precision 20",
        "--hash all",
        "--ignore c",
        "--random_seed 3",
        "-f model",
        "--cache_file x",
        "-i other",
        "--OjaNewton",
    ),
    *(
        "--loss_function logistic",
        "--loss_function=hinge",
        "--loss_function",
        "--learning_rate",
        "-l much",
        "--passes 1.5",
        "-l inf",
        "-l nan",
    ),
    *("--coin rows.txt", "--coin=1", "--svrg", "--min_prediction 0", "--never_heard_of", "--power 0.5", "-l0.1", "-- --coin"),
]


def world(rows: int = 600) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    features = rng.uniform(-1.0, 1.0, (rows, 4)).astype(np.float32)
    return features, 0.3 * features[:, 0] - 0.2 * features[:, 1] + 0.4 * features[:, 0] * features[:, 2] + rng.normal(0.0, 0.05, rows)


def learned(options: str, names: list[str] = NAMES) -> np.ndarray:
    features, costs = world()
    return fit(features, costs, np.ones(len(costs)), names, learner(options=options))


@pytest.mark.parametrize("option", [*sorted(FLAGS), *sorted(NUMBERS), *sorted(COUNTS), *(f"--loss_function {loss}" for loss in LOSSES)])
def test_each_possible_option_exports_what_vowpal_wabbit_predicts(option: str) -> None:
    """`fit` itself compares both, and raises."""
    value = VALUES.get(option, "0.5") if option in NUMBERS else "3" if option in COUNTS else ""
    assert np.ptp(learned(f"{NEEDS.get(option, '')} {option} {value}")) > 0.0


@pytest.mark.parametrize("options", REFUSED)
def test_any_other_option_is_refused_with_the_settings_name_and_the_reason(tmp_path: Path, options: str) -> None:
    file = tmp_path / "query_rewards.toml"
    file.write_text(f'[training]\nlearner_options = "{options}"\n', encoding="utf-8")
    with pytest.raises(InvalidSettingError) as caught:
        load_settings(file)
    assert caught.value.key == "training.learner_options"
    assert str(refusal(options)) in caught.value.problem
    with pytest.raises(InvalidValueError):
        learner(options=options)


@pytest.mark.parametrize("options", ["", "--coin", "-l 0.1 --power_t=0.3", "--passes 3 -c -k --holdout_off", "--ftrl --ftrl_alpha 1e-1"])
def test_options_that_are_possible_are_no_error(options: str) -> None:
    assert refusal(options) is None


@pytest.mark.parametrize("options", ["--l1 1e-3", "--interactions ccc", "--nn 3", "--boosting 5", "--lrq cc3", "--ngram 2"])
def test_a_model_that_the_export_does_not_represent_is_refused_after_training_too(monkeypatch: pytest.MonkeyPatch, options: str) -> None:
    """As if such an option had slipped through the list."""
    monkeypatch.setattr(bandit.model.vowpal, "refusal", lambda options: None)
    with pytest.raises(ExportMismatchError) as caught:
        learned(options)
    assert caught.value.difference > 1e-3


@pytest.mark.parametrize("name", ["a b", "a\tb", "a\nb", "rate:7d", "a|b", "", "--", "a\0b", "a\u00a0b"])
def test_names_that_the_text_format_splits_are_refused(name: str) -> None:
    with pytest.raises(InvalidValueError, match="feature name"):
        learned("--coin", [name, *NAMES[1:]])
