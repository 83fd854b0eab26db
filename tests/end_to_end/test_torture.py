"""A short form of `make torture`: processes and servers that are killed, cut and frozen, and every event counted once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests import torture

MODELS = torture.kills_between_writes  # which are tests of their own


@pytest.mark.parametrize("part", [part for part in torture.PARTS if part is not MODELS], ids=lambda part: part.__name__)
def test_every_event_counts_once(part: Callable[[torture.Sizes, int], str]) -> None:
    assert "difference" in part(torture.SHORT, 1)
