"""Who owns which partition: a lease that expires, and a fencing number that outlives it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import redis

from feature_repo.keys import PARTITIONS, Keys

# Each new owner gets a greater number: a process with an older one cannot commit, however late it wakes. Never below the clock, so that
# numbers do not begin again when Redis has lost them.
_TAKE = """
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local fence = math.max((tonumber(redis.call('GET', KEYS[2])) or 0) + 1, tonumber(ARGV[3]))
redis.call('SET', KEYS[2], fence)
return fence
"""
_RENEW = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
_RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""
_RENEWALS = 3  # within one life of a lease


class Leases:
    """The partitions of one process. Processes share evenly: each takes its part of the free ones, and gives back those beyond it."""

    def __init__(self, client: redis.Redis, keys: Keys, owner: str, *, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing is owned until `balance`."""
        self._client, self._keys, self._owner, self._clock = client, keys, owner, clock
        self._milliseconds = max(round(seconds * 1000), 1)
        self._due = 0.0
        self.fences: dict[int, int] = {}

    @property
    def due(self) -> bool:
        """Whether it is time for `balance`."""
        return self._clock() >= self._due

    def balance(self) -> set[int]:
        """Renew, take and give back; returns the partitions that were taken now. `fences` holds those that are owned.

        Raises: redis.RedisError.
        """
        self._due = self._clock() + self._milliseconds / 1000.0 / _RENEWALS
        self._renew()
        fair = -(-PARTITIONS // self._workers())
        for number in sorted(self.fences)[fair:]:
            self.give_back([number])
        # Each process starts at its own number, so that processes that start together do not compete for the same partitions.
        start = int(self._owner[:8], 16) % PARTITIONS
        others = [number % PARTITIONS for number in range(start, start + PARTITIONS)]
        return self._take([number for number in others if number not in self.fences], fair - len(self.fences))

    def give_back(self, numbers: list[int]) -> None:
        """Let others take these."""
        pipeline = self._client.pipeline(transaction=False)
        for number in numbers:
            pipeline.eval(_RELEASE, 1, self._keys.partition(number).lease, self._owner)
            self.fences.pop(number, None)
        pipeline.execute()

    def forget(self) -> None:
        """Forget the owned partitions: `balance` is due, and takes them again."""
        self.fences.clear()
        self._due = 0.0

    def leave(self) -> None:
        """Give everything back, and be no worker any more."""
        self.give_back(list(self.fences))
        self._client.zrem(self._keys.workers, self._owner)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Renew in the background while something long is done."""
        stop = threading.Event()

        def renew() -> None:
            while not stop.wait(self._milliseconds / 1000.0 / _RENEWALS):
                with contextlib.suppress(redis.RedisError):
                    self._renew()

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _renew(self) -> None:
        owned = list(self.fences)
        pipeline = self._client.pipeline(transaction=False)
        for number in owned:
            pipeline.eval(_RENEW, 1, self._keys.partition(number).lease, self._owner, self._milliseconds)
        for number, renewed in zip(owned, pipeline.execute(), strict=True):
            if not renewed:
                self.fences.pop(number, None)

    def _workers(self) -> int:
        now = time.time()
        pipeline = self._client.pipeline(transaction=False)
        pipeline.zadd(self._keys.workers, {self._owner: now + self._milliseconds / 1000.0})
        pipeline.zremrangebyscore(self._keys.workers, "-inf", now)
        pipeline.zcard(self._keys.workers)
        return max(int(pipeline.execute()[-1]), 1)

    def _take(self, numbers: list[int], count: int) -> set[int]:
        taken: set[int] = set()
        while numbers and len(taken) < count:
            asked, numbers = numbers[: count - len(taken)], numbers[count - len(taken) :]
            pipeline = self._client.pipeline(transaction=False)
            now = int(time.time())
            for number in asked:
                of = self._keys.partition(number)
                pipeline.eval(_TAKE, 2, of.lease, of.fence, self._owner, self._milliseconds, now)
            for number, fence in zip(asked, pipeline.execute(), strict=True):
                if fence:
                    self.fences[number] = fence
                    taken.add(number)
        return taken
