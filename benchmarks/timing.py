"""Timing two or more ways of doing something side by side, so that what disturbs one disturbs the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np


def interleaved(ways: Mapping[str, Callable[[int], object]], *, rounds: int, warm_up: int = 200) -> dict[str, np.ndarray]:
    """Seconds of each call, (rounds,), by name; each way is called with the number of the round, and in turn."""
    for number in range(warm_up):
        for call in ways.values():
            call(number)
    seconds = {name: np.empty(rounds) for name in ways}
    for number in range(rounds):
        for name, call in ways.items():
            start = time.perf_counter()
            call(warm_up + number)
            seconds[name][number] = time.perf_counter() - start
    return seconds


def microseconds(seconds: np.ndarray, percentiles: Sequence[float] = (50, 99)) -> dict[str, float]:
    """Percentiles, for the details of a result."""
    return {f"p{percentile:g}_us": round(float(np.percentile(seconds, percentile)) * 1e6, 1) for percentile in percentiles}
