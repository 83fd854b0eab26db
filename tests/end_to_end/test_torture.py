"""A short form of `make torture`: processes and servers that are killed, cut and frozen, and every event counted once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests import torture


@pytest.mark.parametrize("part", torture.PARTS, ids=lambda part: part.__name__)
def test_every_event_counts_once(part: Callable[[torture.Sizes, int], str]) -> None:
    assert "difference" in part(torture.SHORT, 1)
