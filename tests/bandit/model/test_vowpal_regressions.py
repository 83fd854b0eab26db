"""Vowpal Wabbit's own regression tests 39, 40, 41 and 156: the library that learns here is the one that its authors test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

DATA = Path(__file__).parents[2] / "data" / "vowpal"
CHILD = (
    "import sys, vowpalwabbit; w = vowpalwabbit.Workspace('--quiet ' + sys.argv[1]); "
    "print(w.get_sum_loss() / w.get_weighted_examples()); w.finish()"
)
BANDIT = "--cb 2 --cb_type {} --ngram 2 --skips 4 -b 24 -l {}"


@pytest.mark.parametrize(
    ("arguments", "file", "loss"),
    [
        (BANDIT.format("dr", 0.25), "rcv1_raw_cb_small.vw", 0.132504),
        (BANDIT.format("ips", 0.125), "rcv1_raw_cb_small.vw", 0.168000),
        (BANDIT.format("dm", 0.125), "rcv1_raw_cb_small.vw", 0.168000),
        ("--dsjson --cb_explore_adf --epsilon 0.2 --quadratic GT", "decisionservice.json", -0.040816),
    ],
)
def test_average_losses_are_those_of_its_authors(arguments: str, file: str, loss: float) -> None:
    command = [sys.executable, "-c", CHILD, f"{arguments} -d {DATA / file}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(loss, abs=2e-6)
