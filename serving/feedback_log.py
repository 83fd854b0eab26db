"""The feedback log: what happened downstream of queries, appended to one Redis stream per partition of users."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import msgspec
import redis

from bandit.errors import BacklogFullError
from bandit.ids import MAX_ID_BYTES
from bandit.records import Feedback
from bandit.rewards.feedback import DECODE_ERRORS, MAX_RECORD_BYTES, FeedbackValidator, Rejected
from bandit.settings.load import DEFAULT_FILE, Settings, load_settings
from feature_repo import names
from feature_repo.connection import away, client_of
from feature_repo.keys import Keys, parse

_AT_ONCE = 1000  # entries of one pipeline
_PAUSE_SECONDS = 0.02  # between two looks at a full backlog
_FSYNC_CHECKED = (7, 0, 0)  # before, `appendfsync always` does not look at what fsync returned
_WAITAOF = (7, 4, 6)
_WAITAOF_MILLISECONDS = 1000
Event: TypeAlias = Feedback | Mapping[str, Any] | bytes
_encoder = msgspec.msgpack.Encoder()


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedEvent:
    """An event that was not taken: its place in the call, its id if it has one, and why."""

    index: int
    event_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What became of the events of one call.

    accepted: in Redis, and folded within the second; a power cut may still take them.
    durable: of these, on disk: Redis runs with `appendonly` and `appendfsync always`, or confirmed a WAITAOF.
    rejected: never counted, each with its reason.
    """

    accepted: int
    durable: int
    rejected: Sequence[RejectedEvent]


class FeedbackLog:
    """Appends feedback events. A repeated event_id counts once, so that a call whose outcome is unknown may be made again."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        """Write through this client, which must not retry by itself (`feature_repo.connection.client_of`)."""
        self._client, self._url, self._keys = client, settings.redis_url, Keys.of(settings.feature_repo_path)
        self._validator: FeedbackValidator = settings.feedback_validator()
        self._limit = settings.stream.max_backlog
        self._durability: str | None = None

    @classmethod
    def open(cls, path: str | Path = DEFAULT_FILE, *, timeout: float = 5.0) -> Self:
        """Read the settings file and connect; one call to Redis may take `timeout` seconds. Raises: InvalidSettingError."""
        settings = load_settings(path)
        return cls(client_of(settings.redis_url, timeout=timeout), settings)

    def __enter__(self) -> Self:
        """Nothing to do: an open log is ready."""
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def record(self, events: Sequence[Event], *, now: int | None = None, wait_seconds: float = 5.0) -> Recorded:
        """Append events; those that cannot be counted are named in `rejected`, the others are taken.

        Args:
            events: records, mappings with the same fields, or such as JSON.
            now: UTC microseconds, to judge times by; the clock if None.
            wait_seconds: how long to wait while a partition's backlog is full.

        Raises: BacklogFullError when it stays full: nothing was taken. DependencyUnavailableError: events may have been taken or not. In
            both cases recording the same events again loses nothing and counts nothing twice.
        """
        now = time.time_ns() // 1000 if now is None else now
        taken: list[tuple[str, bytes]] = []
        rejected: list[RejectedEvent] = []
        for index, given in enumerate(events):
            event = _event(given)
            reason = event.reason if isinstance(event, Rejected) else self._validator.rejection_reason(event, now)
            if isinstance(event, Rejected) or reason:
                rejected.append(RejectedEvent(index=index, event_id=_id_of(given), reason=reason))
            else:
                taken.append((self._keys.of_user(event.user_id).feedback, _encoder.encode(event)))
        if not taken:
            return Recorded(accepted=0, durable=0, rejected=rejected)
        try:
            self._wait_for_room(Counter(key for key, _ in taken), wait_seconds)
            for start in range(0, len(taken), _AT_ONCE):
                pipeline = self._client.pipeline(transaction=False)
                for key, record in taken[start : start + _AT_ONCE]:
                    pipeline.xadd(key, {names.RECORD_FIELD: record})
                pipeline.execute()
            durable = len(taken) if self._on_disk() else 0
        except redis.RedisError as error:
            raise away(self._url, error) from error
        return Recorded(accepted=len(taken), durable=durable, rejected=rejected)

    def _wait_for_room(self, wanted: Counter[str], wait_seconds: float) -> None:
        """Several writers may pass at once: the limit holds up to what they write together."""
        deadline = time.monotonic() + wait_seconds
        keys = list(wanted)
        while True:
            pipeline = self._client.pipeline(transaction=False)
            for key in keys:
                pipeline.xlen(key)
            full = {key: waiting for key, waiting in zip(keys, pipeline.execute(), strict=True) if waiting >= self._limit}
            if not full:
                return
            if time.monotonic() >= deadline:
                key, waiting = max(full.items(), key=lambda item: item[1])
                raise BacklogFullError(parse(key).number, waiting, self._limit)
            time.sleep(_PAUSE_SECONDS)

    def _on_disk(self) -> bool:
        if self._durability is None:
            self._durability = _durability(self._client)
        if self._durability == "waitaof":
            try:
                local, _ = self._client.execute_command("WAITAOF", 1, 0, _WAITAOF_MILLISECONDS)
            except redis.ResponseError:  # not ours to call
                self._durability = ""
                return False
            return bool(local >= 1)
        return self._durability == "always"


def _durability(client: redis.Redis) -> str:
    """How this server can promise that a write is on disk: `always`, `waitaof`, or empty for not at all."""
    try:
        version = tuple(int(part) for part in str(client.info("server")["redis_version"]).split(".")[:3])
        held = client.config_get("append*")
    except redis.ResponseError:  # managed servers do not tell, nor do those that grant us little
        return ""
    if held.get("appendonly") != "yes":
        return ""
    if held.get("appendfsync") == "always" and version >= _FSYNC_CHECKED:
        return "always"
    return "waitaof" if version >= _WAITAOF else ""


def _event(given: Event) -> Feedback | Rejected:
    try:
        if isinstance(given, Feedback):  # msgspec checks no types when a record is made
            return msgspec.convert(msgspec.structs.asdict(given), Feedback)
        if not isinstance(given, bytes):
            return msgspec.convert(given, Feedback)
        if len(given) > MAX_RECORD_BYTES:
            return Rejected(f"{len(given)} bytes, expected at most {MAX_RECORD_BYTES}")
        return msgspec.json.decode(given, type=Feedback)
    except DECODE_ERRORS as error:
        return Rejected(str(error))


def _id_of(given: Event) -> str:
    held = given.event_id if isinstance(given, Feedback) else given.get("event_id", "") if isinstance(given, Mapping) else ""
    return held[:MAX_ID_BYTES] if isinstance(held, str) else ""
