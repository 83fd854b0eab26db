"""The demo's worker processes: each plays one policy at a time, and says how far it is."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from multiprocessing.queues import Queue
from pathlib import Path

from examples.kuairand.play import Played, play_policy
from examples.kuairand.replay import Pool

_pools: Sequence[Pool]
_messages: Queue[tuple[str, int]]


def start(pools: Sequence[Pool], messages: Queue[tuple[str, int]]) -> None:
    """What a worker process is handed once."""
    global _pools, _messages
    quiet()
    _pools, _messages = pools, messages


def play(policy: str, folder: Path, prepared: Path, database: str, seed: int) -> Played:
    """Play a policy in this process; see `play_policy`."""
    return play_policy(policy, folder, prepared, database, _pools, seed, lambda step: _messages.put((policy, step)))


def quiet() -> None:
    """The screen is for results: warnings of third parties are the tests' concern."""
    warnings.simplefilter("ignore")
    logging.basicConfig(level=logging.ERROR)
