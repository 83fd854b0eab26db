"""The archiver writes folded entries to the Parquet logs while the consumer continues."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import redis

from feature_repo.keys import Keys, parse
from training.logs.archive import Batch, after
from training.stream.apply import Entry

_TRIM = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('XTRIM', KEYS[2], 'MINID', ARGV[2])
"""
log = logging.getLogger(__name__)

_ROWS_PER_FILE = 50_000
_NEVER = 0, 0
_ROWS_IN_MEMORY = 4 * _ROWS_PER_FILE  # more wait in Redis: memory stays bounded while a disk is slow or full


class Archiver:
    """Collects entries and writes them in its own thread; it trims only entries that are on disk from the streams."""

    def __init__(self, data: Path, client: redis.Redis, keys: Keys, *, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """A file every `seconds`, or as soon as one is full."""
        self._data, self._client, self._seconds, self._clock = data, client, seconds, clock
        self._keys = keys
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="query-rewards-archive")
        self._batch = Batch()
        self._last: dict[str, tuple[int, int]] = {}
        self._fences: dict[str, int] = {}
        self._since = clock()
        self._writing: tuple[Batch, Future[None]] | None = None

    @property
    def full(self) -> bool:
        """Whether memory holds as many entries as it may: the consumer must wait for the disk."""
        return len(self._batch) + (len(self._writing[0]) if self._writing is not None else 0) >= _ROWS_IN_MEMORY

    def add(self, entries: Sequence[Entry], fence: int) -> None:
        """Take entries of one stream that were folded, in its order, by the owner with this number.

        Entries that it took before do not count again.
        """
        self._fences[entries[0].stream] = fence
        stream, last = entries[0].stream, _position(entries[-1].id)
        taken = self._last.get(stream, _NEVER)
        if _position(entries[0].id) <= taken:
            entries = [entry for entry in entries if _position(entry.id) > taken]
        self._last[stream] = max(last, taken)
        for entry in entries:
            self._batch.add(stream, entry.id, entry.content, entry.record)

    def put_away_if_due(self) -> None:
        """Begin to write when it is time. When writing cannot keep up, or fails, wait for it."""
        if self._writing is not None and (self._writing[1].done() or len(self._batch) >= _ROWS_IN_MEMORY):
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
            self.trim(batch.positions)
        except redis.RedisError as error:  # the next owner writes these entries once more, and they count once
            log.warning("written, but not trimmed: %s", error)

    def trim(self, positions: Mapping[str, str]) -> None:
        """Trim the streams that this process still owns: a new owner may be rebuilding from the logs without this file."""
        pipeline = self._client.pipeline(transaction=False)
        for stream, entry_id in positions.items():
            fence = self._keys.partition(parse(stream).number).fence
            pipeline.eval(_TRIM, 2, fence, stream, self._fences[stream], after(entry_id))
        pipeline.execute()


def _position(entry_id: str) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence)
