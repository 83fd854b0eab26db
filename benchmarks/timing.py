"""Timing two or more ways of doing something side by side, so that what disturbs one disturbs the others."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.result import Result


def interleaved(ways: Mapping[str, Callable[[int], object]], *, rounds: int, warm_up: int = 200, run: int = 1) -> dict[str, np.ndarray]:
    """Seconds of each call, (rounds,), by name; each way is called with the number of the round, in turn for `run` calls."""
    for number in range(warm_up):
        for call in ways.values():
            call(number)
    seconds = {name: np.empty(rounds) for name in ways}
    for first in range(0, rounds, run):
        for name, call in ways.items():
            for number in range(first, min(first + run, rounds)):
                start = time.perf_counter()
                call(warm_up + number)
                seconds[name][number] = time.perf_counter() - start
    return seconds


def microseconds(seconds: np.ndarray, percentiles: Sequence[float] = (50, 99)) -> dict[str, float]:
    """Percentiles, for the details of a result."""
    return {f"p{percentile:g}_us": round(float(np.percentile(seconds, percentile)) * 1e6, 1) for percentile in percentiles}


def in_processes(name: str, sides: tuple[str, str], folder: Path, *, runs: int, limit: float, **detail: object) -> None:
    """Write how much longer the first side takes than the second, medians over runs in turn, as the result `name`.

    Each run is a process, `python -m benchmarks.NAME SIDE FOLDER`, whose last printed word is how many seconds it took.
    """
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(runs):
        for side, values in seconds.items():
            command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{name}", side, folder]
            values.append(float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1]))
            print(side, values[-1], file=sys.stderr, flush=True)
    ratio = statistics.median(seconds[sides[0]]) / statistics.median(seconds[sides[1]])
    print(name, ratio)
    Result(name=name, value=ratio, unit="ratio", better="lower", limit=limit, detail=detail | seconds).write()
