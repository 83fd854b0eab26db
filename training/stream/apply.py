"""New entries of one partition, folded into the sums of their users. Pure: what is read and what is committed passes by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from bandit.records import Decision, Feedback
from bandit.rewards.feedback import FeedbackValidator, Rejected
from bandit.rewards.lineage import Reclustering
from bandit.rewards.sums import DRAW, MAX_CLUSTERS, Term, UserSums
from feature_repo import names
from training.logs.archive import read_entry
from training.stream.state import Partition, decision_key, event_key

_RECORD = names.RECORD_FIELD.encode()
_DEAD_RECORD_KEPT = 1024  # bytes in Redis; Parquet keeps more


class Entry(msgspec.Struct, frozen=True, gc=False):
    """An entry of a stream: what its record holds, or why it cannot be counted; `key` tells a repetition, empty for none."""

    stream: str
    id: str
    held: Decision | Feedback | Reclustering | Rejected
    record: bytes
    key: bytes = b""


def entry_of(stream: str, entry_id: str, fields: Mapping[bytes, bytes], validator: FeedbackValidator) -> Entry:
    """Read an entry."""
    held = read_entry(stream, entry_id, fields, validator)
    key = b""
    if isinstance(held, Feedback):
        key = event_key(held.event_id)
    elif isinstance(held, Decision):
        key = decision_key(held.decision_id)
    return Entry(stream, entry_id, held, fields.get(_RECORD, b""), key)


@dataclass(slots=True, kw_only=True)
class Work:
    """New entries of one partition on their way to a commit.

    known: keys that were folded before; sums: of every user among the entries, to be changed by `fold`. After `fold`: keys that are new,
    users whose sums changed, and the records that cannot be counted, with their reasons.
    """

    partition: Partition
    entries: list[Entry] = field(default_factory=list)
    feedback: str = ""  # last entry of each stream, empty for none
    decisions: str = ""
    known: set[bytes] = field(default_factory=set)
    sums: dict[str, UserSums] = field(default_factory=dict)
    keys: dict[bytes, None] = field(default_factory=dict)
    changed: dict[str, None] = field(default_factory=dict)
    dead: list[tuple[bytes, str]] = field(default_factory=list)

    def fold(self, codes: Mapping[str, int]) -> int:
        """Add each new entry once; returns the number of repetitions. `codes`: of the action types."""
        terms: dict[str, list[Term]] = {}
        clusters: dict[str, set[str]] = {}
        known, keys, changed, sums, repeated = self.known, self.keys, self.changed, self.sums, 0
        for place, entry in enumerate(self.entries):
            held, key = entry.held, entry.key
            if isinstance(held, Rejected):
                self.dead.append((entry.record[:_DEAD_RECORD_KEPT], held.reason))
                continue
            user = held.user_id
            if isinstance(held, Reclustering):  # in its place among the events: those before it follow it
                if terms.get(user):
                    sums[user].add(terms.pop(user))
                sums[user].recluster(held)
                changed[user] = None
                continue
            if key in known or key in keys:
                repeated += 1
                continue
            news = _terms(held, codes)
            room = clusters.get(user)
            if room is None:
                room = clusters[user] = set(sums[user].cluster_ids)
            more = {term.cluster_id for term in news} - room
            if more and len(room) + len(more) > MAX_CLUSTERS:
                reason = f"cluster_id: user {user!r} has {MAX_CLUSTERS} clusters already"
                self.entries[place] = Entry(entry.stream, entry.id, Rejected(reason), entry.record)
                self.dead.append((entry.record[:_DEAD_RECORD_KEPT], reason))
                continue
            room |= more
            keys[key] = None
            changed[user] = None
            pending = terms.get(user)
            if pending is None:
                terms[user] = news
            else:
                pending += news
        for user, pending in terms.items():
            sums[user].add(pending)
        return repeated


def _terms(held: Feedback | Decision, codes: Mapping[str, int]) -> list[Term]:
    if isinstance(held, Feedback):
        return [Term(held.cluster_id, codes[held.action], held.occurred_at)]
    return [Term(query.cluster_id, DRAW, held.decided_at) for query in held.queries]
