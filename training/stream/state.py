"""What Redis holds of a partition, and the one step that changes it: dedup, sums and positions together, or not at all.

All keys of a partition are in one hash slot, so the step is one Lua call. It asks first whether this process is still the newest owner,
and whether nothing was committed since it read; then redelivery, a lost reply or a process that wakes from a long sleep change nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import redis

from bandit.rewards.feedback import FUTURE_TOLERANCE
from feature_repo.keys import Keys
from training.logs.archive import arrival

BEGINNING = "0-0"  # position before the first entry of a stream
_COMMIT = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] or redis.call('HGET', KEYS[2], 'commits') ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[2], 'commits', ARGV[2] + 1, 'feedback', ARGV[3], 'decisions', ARGV[4])
redis.call('DEL', KEYS[3])
local next = 8
for _ = 1, ARGV[6] do redis.call('SADD', KEYS[4], ARGV[next]); next = next + 1 end
if ARGV[6] ~= '0' then redis.call('EXPIRE', KEYS[4], ARGV[5]) end
for _ = 1, ARGV[7] do
  redis.call('XADD', KEYS[5], 'MAXLEN', '~', 1000, '*', 'r', ARGV[next], 'reason', ARGV[next + 1])
  next = next + 2
end
for user = 6, #KEYS do
  redis.call('SADD', KEYS[3], ARGV[next])
  redis.call('SET', KEYS[user], ARGV[next + 1])
  next = next + 2
end
return 1
"""
# Sums from the logs: in pieces, and the state last, so that a consumer repeats a rebuild that was not finished.
_RESTORE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
for user = 2, #KEYS do redis.call('SET', KEYS[user], ARGV[user]) end
return 1
"""
_FORGET = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
for user = 2, #KEYS do redis.call('UNLINK', KEYS[user]) end
return 1
"""
_BEGIN = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[2])
return redis.call('HSET', KEYS[2], 'commits', 0, 'feedback', ARGV[3], 'decisions', ARGV[3], 'folding', ARGV[2])
"""


@dataclass(slots=True, kw_only=True)
class Partition:
    """One owned partition, as this process knows it."""

    number: int
    fence: int
    commits: int
    feedback: str  # last entry that was folded, of each stream
    decisions: str
    buckets: set[int] = field(default_factory=set)  # of the seen sets that exist

    @property
    def version(self) -> str:
        """Grows with each commit of whatever owner; its text sorts as its numbers do."""
        return f"{self.fence:012d}.{self.commits:015d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """What one step changes: ids that are seen now, records that cannot be counted with their reasons, and sums by user."""

    feedback: str
    decisions: str
    ids: Collection[bytes]
    dead: Sequence[tuple[bytes, str]]
    sums: Mapping[str, bytes]


class StreamState:
    """Reads and commits partitions through one client."""

    def __init__(self, client: redis.Redis, keys: Keys, *, window: int, folding: str) -> None:
        """window: how late an event may arrive, microseconds; folding: what sums must have been made with to be of use."""
        self._client, self.keys, self._window, self.folding = client, keys, window, folding
        self._bucket = max(window // 2, 1)
        self._commit = ""

    def prepare(self) -> None:
        """Load the script. Repeat it after a restart of Redis."""
        self._commit = self._client.script_load(_COMMIT)

    def load(self, fences: Mapping[int, int]) -> tuple[dict[int, Partition], dict[int, list[str]]]:
        """Partitions that have a state, and the users of the last commit of each; a partition without a state needs a rebuild."""
        pipeline = self._client.pipeline(transaction=False)
        for number in fences:
            pipeline.hgetall(self.keys.partition(number).state)
            pipeline.smembers(self.keys.partition(number).dirty)
        replies = pipeline.execute()
        partitions, dirty = {}, {}
        for (number, fence), state, users in zip(fences.items(), replies[::2], replies[1::2], strict=True):
            if state.get(b"folding", b"").decode() == self.folding:
                partitions[number] = Partition(
                    number=number,
                    fence=fence,
                    commits=int(state[b"commits"]),
                    feedback=state[b"feedback"].decode(),
                    decisions=state[b"decisions"].decode(),
                )
                dirty[number] = [user.decode() for user in users]
        self._find_buckets(partitions.values())
        return partitions, dirty

    def begin(self, fences: Mapping[int, int]) -> None:
        """Give partitions a state, at the beginning of their streams: what the sums hold already is known by its ids."""
        pipeline = self._client.pipeline(transaction=False)
        for number, fence in fences.items():
            pipeline.eval(_BEGIN, 2, self.keys.partition(number).fence, self.keys.partition(number).state, fence, self.folding, BEGINNING)
        pipeline.execute()

    def restore(self, number: int, fence: int, sums: Mapping[str, bytes]) -> None:
        """Write sums that were made from the logs."""
        keys = [self.keys.partition(number).fence, *(self.keys.partition(number).sums(user) for user in sums)]
        self._client.eval(_RESTORE, len(keys), *keys, fence, *sums.values())

    def forget(self, number: int, fence: int, keys: Sequence[bytes]) -> None:
        """Remove sums, unless another owns the partition by now."""
        self._client.eval(_FORGET, len(keys) + 1, self.keys.partition(number).fence, *keys, fence)

    def remember(self, number: int, ids: Collection[bytes], now: int) -> None:
        """Add ids to what is seen: those of events that sums from the logs hold."""
        key = self.keys.partition(number).seen(now // self._bucket)
        pipeline = self._client.pipeline(transaction=False)
        pipeline.sadd(key, *ids)
        pipeline.expire(key, self._lifetime)
        pipeline.execute()

    def seen(self, pipeline: Any, partition: Partition, ids: Sequence[bytes]) -> int:  # noqa: ANN401 -- redis-py's pipelines are untyped
        """Ask which ids are known; returns how many replies that will be, to be joined by `or`."""
        for bucket in partition.buckets:
            pipeline.smismember(self.keys.partition(partition.number).seen(bucket), ids)
        return len(partition.buckets)

    def commit(self, pipeline: Any, partition: Partition, change: Commit, now: int) -> None:  # noqa: ANN401
        """Add the commit to the pipeline: its reply is 1 when Redis took it, 0 when this process may not commit any more."""
        number, bucket = partition.number, now // self._bucket
        if change.ids:
            partition.buckets.add(bucket)
        partition.buckets -= {old for old in partition.buckets if old < self._oldest_bucket(now)}
        of = self.keys.partition(number)
        keys = [of.fence, of.state, of.dirty, of.seen(bucket), of.dead_letters, *(of.sums(user) for user in change.sums)]
        head = (partition.fence, partition.commits, change.feedback, change.decisions, self._lifetime, len(change.ids), len(change.dead))
        dead = [part for letter in change.dead for part in letter]
        pairs = [part for pair in change.sums.items() for part in pair]
        pipeline.evalsha(self._commit, len(keys), *keys, *head, *change.ids, *dead, *pairs)

    def waited_too_long(self, partitions: Mapping[int, Partition]) -> set[int]:
        """Partitions whose next entry came so long ago that ids which may repeat are no longer among the seen."""
        pipeline = self._client.pipeline(transaction=False)
        for number, owned in partitions.items():
            pipeline.xrange(self.keys.partition(number).feedback, min="(" + owned.feedback, count=1)
            pipeline.xrange(self.keys.partition(number).decisions, min="(" + owned.decisions, count=1)
        seconds, _ = self._client.time()
        replies = pipeline.execute()
        waiting = zip(partitions, replies[::2], replies[1::2], strict=True)
        limit = seconds * 1_000_000 - self._bucket
        return {number for number, *two in waiting if any(arrival(entries[0][0].decode()) < limit for entries in two if entries)}

    @property
    def _lifetime(self) -> int:
        """Seconds that a seen set lives after its last id: until no event that it holds may come again."""
        return (self._bucket + self._window + FUTURE_TOLERANCE) // 1_000_000 + 60

    def _oldest_bucket(self, now: int) -> int:
        """The first that may hold an event which may come again; one earlier for entries that waited."""
        return (now - self._window - FUTURE_TOLERANCE) // self._bucket - 1

    def _find_buckets(self, partitions: Collection[Partition]) -> None:
        seconds, _ = self._client.time()
        newest = seconds * 1_000_000 // self._bucket
        oldest = self._oldest_bucket(seconds * 1_000_000)
        pipeline = self._client.pipeline(transaction=False)
        asked = [(partition, bucket) for partition in partitions for bucket in range(oldest, newest + 2)]  # the clock may have run back
        for partition, bucket in asked:
            pipeline.exists(self.keys.partition(partition.number).seen(bucket))
        for (partition, bucket), there in zip(asked, pipeline.execute(), strict=True):
            if there:
                partition.buckets.add(bucket)


def event_key(event_id: str) -> bytes:
    """16 bytes that stand for an event among the seen."""
    return blake2b(event_id.encode(), digest_size=16).digest()


def decision_key(decision_id: str) -> bytes:
    """16 bytes that stand for a decision among the seen."""
    return blake2b(decision_id.encode(), digest_size=16, person=b"decision").digest()
