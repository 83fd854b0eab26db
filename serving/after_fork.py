"""What must be made new in a forked process: locks that another thread may have held, connections that the parent still uses, threads."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forkable(Protocol):
    """Something that a forked process cannot share with its parent."""

    def after_fork(self) -> None:
        """Make it new: called in the child, before anything else runs there."""


_forkables: weakref.WeakSet[Forkable] = weakref.WeakSet()


def renew_after_fork(thing: Forkable) -> None:
    """Call the thing's `after_fork` in every process that is forked from this one, as long as the thing lives."""
    _forkables.add(thing)


def _renew() -> None:
    for thing in list(_forkables):
        thing.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
