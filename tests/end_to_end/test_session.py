"""The story within one session, through the stream: each request sees what happened after the one before."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples import session


@pytest.mark.parametrize("policy", ["query_reward", "bandit"])
def test_by_the_fifth_request_furniture_leads(policy: str, tmp_path: Path, empty_redis: str) -> None:
    played = session.play(tmp_path, empty_redis, policy)
    assert [shown.number for shown in played] == [1, 2, 3, 4, 5]
    assert {shown.policy for shown in played} == {policy}
    first, last = played[0], played[-1]
    assert first.share("recipes") > first.share("furniture")
    assert last.share("furniture") > last.share("recipes") > 0.0
    assert last.share("furniture") > first.share("furniture")
