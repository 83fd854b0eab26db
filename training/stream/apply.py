"""Fold new entries of one partition into the sums of their users. Pure: the consumer reads and commits."""

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
    """An entry of a stream. `content`: its record, or why it cannot be counted; `key`: identifies a repetition, empty for none."""

    stream: str
    id: str
    content: Decision | Feedback | Reclustering | Rejected
    record: bytes
    key: bytes = b""


def entry_of(stream: str, entry_id: str, fields: Mapping[bytes, bytes], validator: FeedbackValidator) -> Entry:
    """Read an entry."""
    content = read_entry(stream, entry_id, fields, validator)
    key = b""
    if isinstance(content, Feedback):
        key = event_key(content.event_id)
    elif isinstance(content, Decision):
        key = decision_key(content.decision_id)
    return Entry(stream, entry_id, content, fields.get(_RECORD, b""), key)


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
        for index, entry in enumerate(self.entries):
            content, key = entry.content, entry.key
            if isinstance(content, Rejected):
                self.dead.append((entry.record[:_DEAD_RECORD_KEPT], content.reason))
                continue
            user = content.user_id
            if isinstance(content, Reclustering):  # in order: it moves the terms of the events before it
                if terms.get(user):
                    sums[user].add(terms.pop(user))
                sums[user].recluster(content)
                changed[user] = None
                continue
            if key in known or key in keys:
                repeated += 1
                continue
            new_terms = _terms(content, codes)
            cluster_ids_so_far = clusters.get(user)
            if cluster_ids_so_far is None:
                cluster_ids_so_far = clusters[user] = set(sums[user].cluster_ids)
            new_clusters = {term.cluster_id for term in new_terms} - cluster_ids_so_far
            if new_clusters and len(cluster_ids_so_far) + len(new_clusters) > MAX_CLUSTERS:
                reason = f"cluster_id: user {user!r} has {MAX_CLUSTERS} clusters already"
                self.entries[index] = Entry(entry.stream, entry.id, Rejected(reason), entry.record)
                self.dead.append((entry.record[:_DEAD_RECORD_KEPT], reason))
                continue
            cluster_ids_so_far |= new_clusters
            keys[key] = None
            changed[user] = None
            pending = terms.get(user)
            if pending is None:
                terms[user] = new_terms
            else:
                pending += new_terms
        for user, pending in terms.items():
            sums[user].add(pending)
        return repeated


def _terms(content: Feedback | Decision, codes: Mapping[str, int]) -> list[Term]:
    if isinstance(content, Feedback):
        return [Term(content.cluster_id, codes[content.action], content.occurred_at)]
    return [Term(query.cluster_id, DRAW, content.decided_at) for query in content.queries]
