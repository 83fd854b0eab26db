"""What can be chosen from while the features cannot be read: the profile seen last, or what the caller passes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from bandit.types import ClusterRewards, Profile
from serving.after_fork import renew_after_fork

Row: TypeAlias = tuple[Profile | None, ClusterRewards | None]


class ProfileCache:
    """The rows of the users seen last, up to a bound; for all threads."""

    def __init__(self, bound: int) -> None:
        """Remember this many users, 0 for none."""
        self._bound = bound
        self.after_fork()
        renew_after_fork(self)
        self._rows: OrderedDict[str, Row] = OrderedDict()

    def after_fork(self) -> None:
        """Another thread of the parent may have held the lock."""
        self._lock = threading.Lock()

    def keep(self, user_id: str, row: Row) -> None:
        """Remember a row, and forget who was not seen for longest."""
        if row[0] is None or not self._bound:
            return
        with self._lock:
            self._rows[user_id] = row
            self._rows.move_to_end(user_id)
            if len(self._rows) > self._bound:
                self._rows.popitem(last=False)

    def of(self, user_id: str) -> Row | None:
        """The row seen last, if it is still there."""
        return self._rows.get(user_id)


def profile_of(fallback: Mapping[str, Sequence[str]] | None) -> Profile | None:
    """A profile that knows nothing but which items there are."""
    if not fallback:
        return None
    n, items = len(fallback), [item for group in fallback.values() for item in group]
    return Profile(
        cluster_ids=list(fallback),
        topic_ids=np.full(n, -1),
        topic_history=np.zeros(n),
        item_counts=np.array([len(group) for group in fallback.values()], np.int64),
        action_types=[],
        action_counts=np.zeros((n, 0)),
        importance=np.ones(n),
        last_action_at=np.zeros(n, np.int64),
        query_items=items,
        query_weights=np.ones(len(items)),
        query_offsets=np.cumsum([0, *(len(group) for group in fallback.values())]),
    )
