"""The learner against Vowpal Wabbit itself, which runs in child processes here as it does in the code."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bandit.model.vowpal
from bandit.errors import InvalidValueError, LearnerError
from bandit.model.featurize import FEATURE_NAMES
from bandit.model.linear_model import weight_count
from bandit.model.vowpal import fit, write_lines
from tests.strategies import learner, linear_model

NAMES = list(FEATURE_NAMES)
D = len(NAMES)
EVENTS, ACTIONS = 3_000, 5
ROOT = Path(bandit.model.vowpal.__file__).parents[2]
GRADIENT = learner(options="")  # Vowpal Wabbit's default: adaptive, normalized, invariant gradient descent
COIN = learner(options="--coin")
learners = pytest.mark.parametrize("learner", [GRADIENT, COIN], ids=["gradient", "coin"])

# Trains on a file, exports the weights, then predicts the lines of a second file. pylibvw gives the prediction before clamping.
CHILD = """
import sys
import numpy as np
from bandit.model.vowpal import slots
from vowpalwabbit import Workspace
folder, names, arguments = sys.argv[1], sys.argv[2].split(","), sys.argv[3]
workspace = Workspace(f"{arguments} -d {folder}/train.txt")
np.save(f"{folder}/weights.npy", np.array([workspace.get_weight(place) for place in slots(workspace, names)], np.float32))
predictions = []
for line in open(f"{folder}/test.txt"):
    example = workspace.parse(line.rstrip())
    workspace.predict(example)
    predictions.append(example.get_partial_prediction())
    workspace.finish_example(example)
np.save(f"{folder}/predictions.npy", np.array(predictions))
workspace.finish()
"""


def vowpal(folder: Path, arguments: str) -> tuple[np.ndarray, np.ndarray]:
    """Weights after `train.txt` and predictions for `test.txt`, by Vowpal Wabbit alone."""
    (folder / "test.txt").touch()
    command = [sys.executable, "-c", CHILD, str(folder), ",".join(NAMES), arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return np.load(folder / "weights.npy"), np.load(folder / "predictions.npy")


def world(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features like ours, and costs that follow from two of them, their product and noise."""
    rng = np.random.default_rng(seed)
    features = rng.uniform(-1.0, 1.0, (rows, D)).astype(np.float32)
    means = 0.3 * features[:, 0] - 0.2 * features[:, 1] + 0.4 * features[:, 0] * features[:, 2] - 0.1
    return features, means + rng.normal(0.0, 0.1, rows)


def events(sizes: np.ndarray, uniform: bool, seed: int = 1) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    """Single-draw events in the format of --cb_adf, and the drawn rows with the importance that mtr gives them.

    Measured of Vowpal Wabbit 9.11: (1 / p) * (sum of events / sum of actions), both sums up to and with this event.
    """
    rng = np.random.default_rng(seed)
    features, costs = world(int(sizes.sum()), seed)
    text, drawn, weights, start = [], [], [], 0
    for number, size in enumerate(sizes.tolist(), start=1):
        probabilities = np.full(size, 1.0 / size) if uniform else rng.dirichlet(np.full(size, 3.0)) * 0.8 + 0.2 / size
        chosen = int(rng.choice(size, p=probabilities))
        for action in range(size):
            row = start + action
            label = f"0:{costs[row]:.9g}:{probabilities[chosen]:.9g} " if action == chosen else ""
            text.append(label + "|c " + " ".join(f"{name}:{value:.9g}" for name, value in zip(NAMES, features[row].tolist(), strict=True)))
        text.append("")
        drawn.append(start + chosen)
        start += size
        weights.append(number / start / probabilities[chosen])
    return "\n".join(text) + "\n", features[drawn], costs[drawn], np.array(weights)


@learners
@pytest.mark.parametrize(
    ("sizes", "uniform"),
    [
        (np.full(EVENTS, ACTIONS), True),  # importance 1 throughout
        (np.full(EVENTS, ACTIONS), False),
        (np.random.default_rng(2).integers(2, 9, EVENTS), True),
        (np.random.default_rng(3).integers(2, 9, EVENTS), False),
    ],
    ids=["uniform", "weighted", "sizes", "sizes-weighted"],
)
def test_one_line_per_draw_learns_what_cb_adf_mtr_learns_from_the_events(tmp_path, learner, sizes, uniform):
    text, features, costs, weights = events(sizes, uniform)
    (tmp_path / "train.txt").write_text(text, encoding="ascii")
    theirs, _ = vowpal(tmp_path, f"--quiet --cb_adf --cb_type mtr -q cc -b 18 {learner.options}")
    if uniform and (sizes == ACTIONS).all():
        np.testing.assert_allclose(weights, 1.0, rtol=1e-12)
    ours = fit(features, costs, weights, NAMES, learner)
    assert np.abs(ours).max() > 0.05  # something was learned at all
    assert np.abs(ours - theirs).max() < 1e-6


@learners
def test_the_exported_model_predicts_what_vowpal_wabbit_predicts(tmp_path, learner):
    features, costs = world(4_000)
    unseen = np.random.default_rng(5).uniform(-1.0, 1.0, (200, D)).astype(np.float32)
    write_lines(tmp_path / "train.txt", features, costs, np.ones(4_000), NAMES)
    write_lines(tmp_path / "test.txt", unseen, np.zeros(200), np.ones(200), NAMES)
    weights, costs_predicted = vowpal(tmp_path, " ".join(learner.arguments))
    exported = fit(features, costs, np.ones(4_000), NAMES, learner)
    np.testing.assert_array_equal(exported, weights)
    assert np.ptp(costs_predicted) > 0.5
    assert np.abs(linear_model(exported).predict(unseen) + costs_predicted).max() < 1e-6


@learners
def test_the_learner_finds_the_world_that_its_costs_follow_from(learner):
    features, costs = world(20_000)
    unseen, _ = world(1_000, seed=9)
    true = 0.3 * unseen[:, 0] - 0.2 * unseen[:, 1] + 0.4 * unseen[:, 0] * unseen[:, 2] - 0.1
    exported = fit(features, costs, np.ones(20_000), NAMES, learner)
    assert exported.dtype == np.float32
    assert exported.shape == (weight_count(D),)
    error = -linear_model(exported).predict(unseen) - true
    assert (error**2).mean() < 0.05 * true.var()


def test_importance_counts():
    """Two halves that contradict each other: the heavier one wins."""
    features = np.ones((2_000, D), np.float32)
    costs = np.tile([0.0, 1.0], 1_000)
    light, heavy = (fit(features, costs, np.tile(pair, 1_000), NAMES, GRADIENT) for pair in ([9.0, 1.0], [1.0, 9.0]))
    assert -linear_model(light).predict(features[:1])[0] < 0.4
    assert -linear_model(heavy).predict(features[:1])[0] > 0.6


@pytest.mark.parametrize("options", ["", "--coin", "--passes 3 -c -k --holdout_off"])
def test_same_rows_and_seed_give_the_same_bytes(options):
    features, costs = world(500)
    first, second = (fit(features, costs, np.ones(500), NAMES, learner(options=options)).tobytes() for _ in range(2))
    assert first == second


def test_the_order_of_rows_matters_so_that_the_caller_must_fix_it():
    features, costs = world(500)
    forward, backward = fit(features, costs, np.ones(500), NAMES, COIN), fit(features[::-1], costs[::-1], np.ones(500), NAMES, COIN)
    assert not np.array_equal(forward, backward)


@pytest.mark.parametrize("argument", ["features", "costs", "weights"])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_numbers_that_would_poison_every_weight_are_refused_with_their_row(argument, poison):
    features, costs = world(10)
    rows = {"features": features, "costs": costs, "weights": np.ones(10)}
    rows[argument][7] = poison
    with pytest.raises(InvalidValueError, match=rf"^{argument}: .*row 7"):
        fit(**rows, names=NAMES, learner=COIN)


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_weights_that_are_not_positive_are_refused_for_vowpal_wabbit_would_skip_the_row(weight):
    features, costs = world(10)
    weights = np.ones(10)
    weights[4] = weight
    with pytest.raises(InvalidValueError, match=r"^weights: .*row 4"):
        fit(features, costs, weights, NAMES, COIN)


rows = pytest.mark.parametrize("count", [10, 20_000])  # the second is more text than a pipe holds: the writer waits for the child


@rows
def test_a_child_that_takes_too_long_is_stopped(count):
    features, costs = world(count)
    with pytest.raises(LearnerError, match=r"stopped after 0\.01 seconds"):
        fit(features, costs, np.ones(count), NAMES, dataclasses.replace(COIN, timeout_seconds=0.01))


@rows
def test_a_child_that_fails_is_a_learner_error_with_its_last_words(count):
    features, costs = world(count)
    with pytest.raises(LearnerError, match="cache"):
        fit(features, costs, np.ones(count), NAMES, learner(options="--passes 2"))  # which need a cache: -c


def test_a_child_that_stops_reading_has_learned_what_it_read():
    features, costs = world(20_000)
    some = fit(features, costs, np.ones(20_000), NAMES, learner(options="--coin --examples 50"))
    np.testing.assert_array_equal(some, fit(features[:50], costs[:50], np.ones(50), NAMES, COIN))


def test_rows_that_cannot_be_written_are_no_model():
    features, costs = world(10)
    with pytest.raises(ValueError, match="zip"):
        fit(features[:, 1:], costs, np.ones(10), NAMES, COIN)


def test_chunks_are_learned_from_in_order(monkeypatch):
    features, costs = world(2_000)
    whole = fit(features, costs, np.ones(2_000), NAMES, COIN)
    monkeypatch.setattr(bandit.model.vowpal, "_CHUNK", 7)
    np.testing.assert_array_equal(fit(features, costs, np.ones(2_000), NAMES, COIN), whole)


def test_two_features_of_one_name_are_refused():
    features, costs = world(10)
    with pytest.raises(LearnerError, match="share a place"):
        fit(features, costs, np.ones(10), [NAMES[0], NAMES[0], *NAMES[2:]], COIN)


def test_lines_hold_every_float32_exactly_and_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(bandit.model.vowpal, "_CHUNK", 7)  # many chunks
    features, costs = world(50)
    write_lines(tmp_path / "rows.txt", features, costs, np.arange(1.0, 51.0), NAMES)
    read = [line.split() for line in (tmp_path / "rows.txt").read_text().splitlines()]
    np.testing.assert_allclose([float(line[0]) for line in read], costs, rtol=1e-8)
    assert [float(line[1]) for line in read] == list(range(1, 51))
    assert all([part.split(":")[0] for part in line[3:]] == NAMES and line[2] == "|c" for line in read)
    np.testing.assert_array_equal(np.array([[part.split(":")[1] for part in line[3:]] for line in read]).astype(np.float32), features)
