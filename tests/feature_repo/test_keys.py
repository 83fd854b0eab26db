"""Keys of Redis: they begin with the project, lie in one slot for each partition, and are read back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from bandit.errors import FeatureStoreError
from feature_repo.keys import PARTITIONS, Keys, parse, partition
from tests.strategies import law


def of_partition(keys: Keys, number: int) -> dict[str, str]:
    of = keys.partition(number)
    plain = {name: getattr(of, name) for name in ("decisions", "feedback", "fence", "lease", "state", "dirty", "dead_letters")}
    return plain | {"seen": of.seen(7), "sums": of.sums("u:{1}")}


@pytest.mark.parametrize("number", [0, 17, PARTITIONS - 1])
def test_the_keys_of_a_partition_are_in_one_slot_and_read_back(number: int) -> None:
    made = of_partition(Keys("shop"), number)
    assert len({*made.values()}) == 9
    assert len({key_slot(key.encode()) for key in made.values()}) == 1
    for kind, key in made.items():
        assert key.startswith("{shop")
        assert parse(key) == (number, kind, {"seen": "7", "sums": "u:{1}"}.get(kind, ""))


@law
@given(st.text())
def test_a_user_is_read_back_whatever_the_id(user: str) -> None:
    assert parse(Keys("shop").of_user(user).sums(user)) == (partition(user), "sums", user)


def test_what_a_promotion_changes_is_in_one_slot() -> None:
    keys = Keys("shop")
    assert len({key_slot(key.encode()) for key in (keys.deployment, keys.champion, keys.model("ab"), keys.workers)}) == 1


@pytest.mark.parametrize("project", ["", "a b", "a*", "{a}", "a:1"])
def test_a_project_that_cannot_begin_a_key_is_refused(project: str) -> None:
    with pytest.raises(FeatureStoreError, match="project"):
        Keys(project)


def test_another_key_is_no_key_of_a_partition() -> None:
    with pytest.raises(ValueError, match="no key"):
        parse("{shop}:model:champion")
