"""Worker processes that cluster users, all reading one copy of the embedding matrix."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import numpy as np

from bandit.settings.sections import ClusteringSettings
from bandit.types import Floats32
from training.clustering.pinnersage import UserClusters, UserHistories, cluster_users

ClusterAll = Callable[[Iterable[UserHistories], Floats32, int, ClusteringSettings, int], Iterator[UserClusters]]


@contextmanager
def workers(processes: int) -> Iterator[ClusterAll]:
    """Start this many processes, and yield a function that applies `cluster_users` to many histories, in their order.

    They start and end in the background: the caller does not wait for them. With 1, the calling process does the work.
    """
    if processes == 1:
        yield _in_this_process
        return
    context = multiprocessing.get_context("spawn")  # a fork would share this process' threads
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        for _ in range(processes):
            pool.submit(_nothing)  # with each task that finds no idle process one starts
        yield partial(_shared_out, pool)


def _in_this_process(
    histories: Iterable[UserHistories], vectors: Floats32, actions: int, settings: ClusteringSettings, as_of: int
) -> Iterator[UserClusters]:
    return (cluster_users(some, vectors, actions, settings, as_of) for some in histories)


def _shared_out(
    pool: ProcessPoolExecutor,
    histories: Iterable[UserHistories],
    vectors: Floats32,
    actions: int,
    settings: ClusteringSettings,
    as_of: int,
) -> Iterator[UserClusters]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vectors.npy"
        np.save(file, vectors, allow_pickle=False)
        yield from pool.map(partial(_cluster_task, file=file, actions=actions, settings=settings, as_of=as_of), histories)
    pool.shutdown(wait=False)


def _cluster_task(histories: UserHistories, file: Path, actions: int, settings: ClusteringSettings, as_of: int) -> UserClusters:
    return cluster_users(histories, _mapped(file), actions, settings, as_of)


@cache
def _mapped(file: Path) -> Floats32:
    return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))


def _nothing() -> None:
    """Return at once."""
