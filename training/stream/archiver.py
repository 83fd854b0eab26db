"""The archiver: what was folded, on its way to the Parquet logs, beside the folding."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import redis

from bandit.lineage import Reclustering
from bandit.records import Decision, Feedback
from training.archive import Batch, add

log = logging.getLogger(__name__)

_ROWS_PER_FILE = 50_000
_ROWS_HELD = 4 * _ROWS_PER_FILE  # more wait in Redis: memory stays bounded while a disk is slow or full

Entry = tuple[str, str, Decision | Feedback | Reclustering | str, bytes]
"""Stream, entry id, what the record holds (or why it cannot be counted), and the record."""


class Archiver:
    """Collects entries and writes them in a thread of its own; only what is on disk is trimmed from the streams."""

    def __init__(self, data: Path, client: redis.Redis, *, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """A file every `seconds`, or as soon as one is full."""
        self._data, self._client, self._seconds, self._clock = data, client, seconds, clock
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="query-rewards-archive")
        self._batch = Batch()
        self._last: dict[str, tuple[int, int]] = {}
        self._since = clock()
        self._writing: tuple[Batch, Future[None]] | None = None

    @property
    def full(self) -> bool:
        """Whether as much is held as may be: nothing more should be folded until the disk has taken some."""
        return len(self._batch) + (len(self._writing[0]) if self._writing is not None else 0) >= _ROWS_HELD

    def add(self, entry: Entry) -> None:
        """Take an entry that was folded. One that was taken before is left out: after a lost connection entries come again."""
        stream, entry_id, held, record = entry
        milliseconds, sequence = entry_id.split("-")
        place = int(milliseconds), int(sequence)
        if place <= self._last.get(stream, (0, 0)):
            return
        self._last[stream] = place
        add(self._batch, stream, entry_id, "" if isinstance(held, Reclustering) else held, record)

    def put_away_if_due(self) -> None:
        """Begin to write when it is time. When writing cannot keep up, or fails, wait for it."""
        if self._writing is not None and (self._writing[1].done() or len(self._batch) >= _ROWS_HELD):
            self._finish()
        full = len(self._batch) >= _ROWS_PER_FILE
        if self._writing is None and self._batch.positions and (full or self._clock() - self._since >= self._seconds):
            self._begin()

    def flush(self) -> None:
        """Write everything now.

        Raises: OSError when the disk does not take it.
        """
        self._finish()
        while self._batch.positions:
            self._begin()
            self._finish(retry=False)

    def close(self) -> None:
        """Write everything, and end the thread."""
        self.flush()
        self._pool.shutdown()

    def _begin(self) -> None:
        batch, self._batch, self._since = self._batch, Batch(), self._clock()
        self._writing = batch, self._pool.submit(self._put_away, batch)

    def _finish(self, *, retry: bool = True) -> None:
        """Wait for the file. What could not be written goes back, and is tried again: nothing is trimmed before."""
        if self._writing is None:
            return
        (batch, done), self._writing = self._writing, None
        try:
            done.result()
        except OSError as error:
            batch.extend(self._batch)
            self._batch = batch
            if not retry:
                raise
            log.error("the logs cannot be written, and the streams are not trimmed: %s", error)  # noqa: TRY400 -- one line a time
            time.sleep(min(self._seconds, 1.0))

    def _put_away(self, batch: Batch) -> None:
        batch.write(self._data)
        try:
            batch.trim(self._client)
        except redis.RedisError as error:  # the next owner writes these entries once more, and they count once
            log.warning("written, but not trimmed: %s", error)
