"""What feedback must be to be counted: one judge, for the library that takes it in and for the stream that folds it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import msgspec

from bandit.ids import MAX_ID_BYTES, id_problem
from bandit.records import Feedback
from bandit.types import MICROSECONDS_PER_MINUTE

FUTURE_TOLERANCE = 5 * MICROSECONDS_PER_MINUTE  # that another machine's clock may run ahead
MAX_RECORD_BYTES = 8 * 1024  # seven identifiers and an action, with room to spare
# A record nested a thousand deep is a RecursionError of msgspec, even where no field holds it.
DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_IDS = ("event_id", "decision_id", "user_id", "cluster_id", "query_id", "item_id")
_decoder = msgspec.msgpack.Decoder(Feedback)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that cannot be counted, and why."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackValidator:
    """actions: the known action types; window: how late an event may arrive, microseconds."""

    actions: Collection[str]
    window: int

    def rejection_reason(self, event: Feedback, now: int) -> str:
        """Why this event cannot be counted when it arrives at `now` (UTC microseconds); empty when it can."""
        ids = event.event_id, event.decision_id, event.user_id, event.cluster_id, event.query_id, event.item_id
        if not _plain(ids):
            for name, value in zip(_IDS, ids, strict=True):
                problem = id_problem(value)
                if problem:
                    return f"{name}: {problem}"
        if event.action not in self.actions:
            return f"action: expected one of {sorted(self.actions)}, received {event.action[:MAX_ID_BYTES]!r}"
        if problem := time_problem(event.occurred_at, now):
            return f"occurred_at: {problem}"
        if event.occurred_at < now - self.window:
            return f"occurred_at: {event.occurred_at} is older than the window of {self.window / 3.6e9:g} hours"
        return ""

    def read(self, record: bytes, now: int) -> Feedback | Rejected:
        """The event in a record of the stream, or why it is none that can be counted."""
        if len(record) > MAX_RECORD_BYTES:
            return Rejected(f"{len(record)} bytes, expected at most {MAX_RECORD_BYTES}")
        try:
            event = _decoder.decode(record)
        except DECODE_ERRORS as error:
            return Rejected(f"not a feedback event: {error}")
        reason = self.rejection_reason(event, now)
        return Rejected(reason) if reason else event


def _plain(ids: Sequence[str]) -> bool:
    """Whether identifiers are beyond doubt, at a glance: nearly all are."""
    together = "".join(ids)
    return together.isascii() and together.isprintable() and all(ids) and len(max(ids, key=len)) <= MAX_ID_BYTES


def time_problem(at: int, now: int) -> str:
    """Why something cannot have happened at `at` (UTC microseconds) when it comes to us at `now`; empty when it can."""
    return f"{at} is in the future" if at > now + FUTURE_TOLERANCE else "" if at > 0 else f"{at} is no time"
