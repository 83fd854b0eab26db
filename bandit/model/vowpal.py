"""Vowpal Wabbit as a cost regressor, in a child process: it holds the GIL while it works, and may abort the process it lives in.

One line per drawn cluster, squared loss, all products of two features. This is the same update as `--cb_adf --cb_type mtr` on
single-draw events, at a fraction of the cost, and lets each of a request's draws be learned (`tests/bandit/model/test_vowpal.py`).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bandit.errors import ExportMismatchError, InvalidValueError, LearnerError
from bandit.model.learner_options import refusal
from bandit.model.linear import predictions
from bandit.types import Floats, Floats32

NAMESPACE = "c"
_FNV_PRIME = 16777619
_CONSTANT = 11650396
_BITS = 18
_MASK = (1 << _BITS) - 1
_DECIMALS = 12  # of costs and weights
_CHUNK = 20_000  # lines formatted at once: bounds the memory of the text
_SAMPLE_FILE = "sample.txt"
_SAMPLE = 200  # rows on which the export is compared with Vowpal Wabbit's own predictions
_TOLERANCE = 1e-6  # of their difference; where terms are large, what adding them in float32 may lose


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """How to learn: `options` are Vowpal Wabbit's own, of those that `learner_options` lists."""

    options: str
    seed: int
    timeout_seconds: float

    def __post_init__(self) -> None:
        """Refuse options that the exported weights cannot represent."""
        problem = refusal(self.options)
        if problem is not None:
            raise InvalidValueError(
                "learner options", expected="options that the exported weights represent: " + problem, received=self.options
            )

    @property
    def arguments(self) -> list[str]:
        """Vowpal Wabbit's command line, without files."""
        return f"--quiet -b {_BITS} -q {NAMESPACE}{NAMESPACE} --random_seed {self.seed} {self.options}".split()


def fit(features: Floats32, costs: Floats, weights: Floats, names: Sequence[str], learner: Learner) -> Floats32:
    """Learn costs from features; returns the exported weights.

    Args:
        features: float32 (rows, d).
        costs: (rows,), what to predict; for rewards, their negative.
        weights: (rows,), > 0, importance of each row.
        names: of the d features; their hashes are their places in the weights.
        learner: settings.

    Returns: float32 (d + 1 + d(d+1)/2,): features, constant, products i <= j row by row.

    Raises: InvalidValueError for numbers that would poison every weight, and names that the text format would split; LearnerError when the
        child process fails; ExportMismatchError when the weights do not predict what Vowpal Wabbit predicts.
    """
    for name in names:
        if not name.isprintable() or any(character.isspace() or character in ":|" for character in name) or name in {"", "--"}:
            raise InvalidValueError("feature name", expected="printable characters without blanks, ':' and '|'", received=name)
    for name, array in (("features", features), ("costs", costs), ("weights", weights)):
        if not np.isfinite(array).all():
            raise InvalidValueError(name, expected="finite numbers only", received=f"row {int(np.argwhere(~np.isfinite(array))[0][0])}")
    if not (weights > 0.0).all():
        raise InvalidValueError("weights", expected="numbers above 0", received=f"row {int(np.argmin(weights))}")
    with tempfile.TemporaryDirectory(prefix="query-rewards-vw-") as folder:
        command = [sys.executable, "-m", "bandit.model.vowpal", folder, *names, "--", *learner.arguments]
        sample = features[np.linspace(0, len(features) - 1, min(len(features), _SAMPLE)).astype(np.int64)]
        write_lines(Path(folder) / _SAMPLE_FILE, sample, np.zeros(len(sample)), np.ones(len(sample)), names)
        _feed(command, _lines(features, costs, weights, names), learner.timeout_seconds)
        exported = np.load(Path(folder) / "weights.npy", allow_pickle=False)
        predicted = np.load(Path(folder) / "predictions.npy", allow_pickle=False)
    if not np.isfinite(exported).all():
        raise LearnerError("Vowpal Wabbit learned weights that are not finite")
    _compare(sample, exported, predicted, learner)
    return np.asarray(exported, np.float32)


def _compare(sample: Floats32, exported: Floats32, predicted: Floats, learner: Learner) -> None:
    difference = np.abs(predictions(sample, exported) - predicted)
    rounding = len(exported) * 2.0**-24 * predictions(np.abs(sample), np.abs(exported))
    allowed = np.maximum(_TOLERANCE, rounding)
    bad = ~(difference <= allowed)
    if bad.any():
        row = int(np.argmax(np.where(bad, difference, 0.0)))
        raise ExportMismatchError(float(difference[row]), row, learner.options)


def write_lines(file: Path, features: Floats32, costs: Floats, weights: Floats, names: Sequence[str]) -> None:
    """Write Vowpal Wabbit's text format, `cost weight |c name:value …`, one line a row, features as short as float32 allows."""
    with file.open("wb") as out:
        out.writelines(_lines(features, costs, weights, names))


def _lines(features: Floats32, costs: Floats, weights: Floats, names: Sequence[str]) -> Iterator[memoryview]:
    """The text, in chunks."""
    import pyarrow as pa  # noqa: PLC0415 -- comes with the training side, the only one that learns
    import pyarrow.compute as pc  # noqa: PLC0415

    for start in range(0, len(features), _CHUNK):
        part = slice(start, start + _CHUNK)
        columns = [costs[part].round(_DECIMALS), weights[part].round(_DECIMALS), *np.ascontiguousarray(features[part].T, np.float32)]
        numbers = [pa.array(column).cast(pa.string()) for column in columns]
        named = [piece for name, number in zip(names, numbers[2:], strict=True) for piece in (f" {name}:", number)]
        lines = pc.binary_join_element_wise(numbers[0], " ", numbers[1], f" |{NAMESPACE}", *named, "\n", "")
        _, offsets, text = lines.buffers()
        yield memoryview(text)[: np.frombuffer(offsets, np.int32)[len(lines)]]


def _ahead(chunks: Iterator[memoryview]) -> Iterator[memoryview]:
    """The same chunks, each made while the one before is used."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, chunks, None)
        while (chunk := coming.result()) is not None:
            coming = pool.submit(next, chunks, None)
            yield chunk


def _feed(command: Sequence[str], text: Iterator[memoryview], timeout_seconds: float) -> None:
    """Run the child with the text as its standard input: it learns from one chunk while the next is formatted.

    Raises: LearnerError when the child fails or takes too long.
    """
    source, sink = os.pipe()

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), open(sink, "wb") as out:  # noqa: PTH123 -- a pipe has no path
            out.writelines(_ahead(text))  # a child that stops reading says itself why

    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(write)
        try:
            done = subprocess.run(command, stdin=source, capture_output=True, text=True, timeout=timeout_seconds, check=False)  # noqa: S603
        except subprocess.TimeoutExpired as error:
            raise LearnerError(f"Vowpal Wabbit was stopped after {timeout_seconds} seconds") from error
        finally:
            os.close(source)  # ends a writer whose child is gone
        written.result()
    if done.returncode:
        raise LearnerError(f"Vowpal Wabbit ended with status {done.returncode}: {done.stderr.strip()[-500:]}")


def slots(workspace: object, names: Sequence[str]) -> list[int]:
    """Places of the weights in Vowpal Wabbit's table: features, constant, products.

    A product's place is ((16777619 * i) xor j) in 64 bits, masked; a collision would make two weights one, so it is refused.
    """
    hash_space = workspace.hash_space(NAMESPACE)  # type: ignore[attr-defined]
    hashes = [workspace.hash_feature(name, hash_space) for name in names]  # type: ignore[attr-defined]
    products = [
        ((_FNV_PRIME * hashes[i] & 0xFFFF_FFFF_FFFF_FFFF) ^ hashes[j]) & _MASK for i in range(len(names)) for j in range(i, len(names))
    ]
    places = [*(value & _MASK for value in hashes), _CONSTANT & _MASK, *products]
    if len(set(places)) != len(places):
        raise LearnerError("two features share a place in Vowpal Wabbit's table: rename one of them")
    return places


def _child(folder: Path, names: Sequence[str], arguments: Sequence[str]) -> None:
    from vowpalwabbit import Workspace  # noqa: PLC0415 -- only the child process may load it

    rows = folder / "train.txt"
    rows.symlink_to("/dev/stdin")  # under a name of its own, beside which there is room for the cache of several passes
    workspace = Workspace(" ".join([*arguments, "-d", str(rows)]))
    exported = np.array([workspace.get_weight(place) for place in slots(workspace, names)], np.float32)
    predicted = []
    for line in (folder / _SAMPLE_FILE).read_text(encoding="utf-8").splitlines():
        example = workspace.parse(line)
        workspace.predict(example)
        predicted.append(example.get_partial_prediction())  # before it is cut to the range of the costs seen
        workspace.finish_example(example)
    workspace.finish()
    np.save(folder / "weights.npy", exported, allow_pickle=False)
    np.save(folder / "predictions.npy", np.array(predicted, np.float64), allow_pickle=False)


if __name__ == "__main__":
    separator = sys.argv.index("--")
    _child(Path(sys.argv[1]), sys.argv[2:separator], sys.argv[separator + 1 :])
