"""Worker processes that cluster users, all reading one copy of the embedding matrix."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from bandit.settings import ClusteringSettings
from bandit.types import Floats32
from training.pinnersage import UserClusters, UserHistories, cluster_users

Task = Callable[[UserHistories], UserClusters]


@contextmanager
def workers(
    processes: int, vectors: Floats32, actions: int, settings: ClusteringSettings, as_of: int
) -> Iterator[Callable[[Iterable[UserHistories]], Iterator[UserClusters]]]:
    """Start so many processes, and give what shares out histories among them: `cluster_users` of each, in the order of the histories.

    They start in the background: what is done before the first histories costs no time. One process is this one.
    """
    if processes == 1:
        yield partial(map, partial(cluster_users, vectors=vectors, actions=actions, settings=settings, as_of=as_of))
        return
    with tempfile.TemporaryDirectory() as folder:
        # A file that all of them map. As an argument each would have a copy, and each would only start once the one before had read it.
        file = Path(folder) / "vectors.npy"
        np.save(file, vectors, allow_pickle=False)
        context = multiprocessing.get_context("spawn")  # a fork would share this process' threads
        with ProcessPoolExecutor(processes, mp_context=context, initializer=_start, initargs=(file, actions, settings, as_of)) as pool:
            pool.submit(_nothing)  # processes start with the first task
            yield partial(pool.map, _one)


_task: Task  # of a worker process


def _start(file: Path, actions: int, settings: ClusteringSettings, as_of: int) -> None:
    global _task  # noqa: PLW0603 -- the one way to hand a worker what it shall not load for each task
    vectors = np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
    _task = partial(cluster_users, vectors=vectors, actions=actions, settings=settings, as_of=as_of)


def _one(histories: UserHistories) -> UserClusters:
    return _task(histories)


def _nothing() -> None:
    """Done as soon as it is begun."""
