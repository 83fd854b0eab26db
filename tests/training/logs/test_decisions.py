"""A decision's record: what the log can hold is read, what it cannot is named, and rows hold every field."""

from __future__ import annotations

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit.records import Decision
from bandit.rewards.feedback import FUTURE_TOLERANCE, Rejected
from tests.strategies import law
from tests.tables_made import DAY, NOW, decision
from training.logs.decisions import decision_table, read_decision
from training.logs.schemas import DECISIONS

MADE = NOW - 2 * DAY
DRAWN = [("a", "q1"), ("b", "q2"), ("a", "q3")]
ARRIVED = NOW


def read(record: bytes) -> Decision | Rejected:
    return read_decision(record, ARRIVED)


def test_a_decision_is_read_as_it_was_written_and_its_row_holds_every_field() -> None:
    made = decision(1, at=MADE, user_id="Zoë", drawn=DRAWN, context={"surface": "home"}, seed=2**63 - 1, degraded=True)
    assert read(msgspec.msgpack.encode(made)) == made
    table = decision_table([made])
    assert table.schema.equals(DECISIONS)
    (row,) = table.to_pylist()
    assert set(row) == {field.name for field in msgspec.structs.fields(Decision)}
    assert row["decision_id"] == made.decision_id
    assert dict(row["context"]) == made.context
    assert row["seed"] == made.seed
    np.testing.assert_array_equal(np.array(row["features"], np.float32), made.feature_matrix().ravel())
    assert table["decided_at"].cast(pa.int64()).to_pylist() == [MADE]


def test_no_decisions_are_no_rows() -> None:
    assert decision_table([]).equals(DECISIONS.empty_table())


BROKEN = {
    "features of no whole row": ({"features": b"\0" * 28}, "features"),
    "features of no whole number": ({"features": b"\0\0\0"}, "features"),
    "no candidates": ({"cluster_ids": [], "features": b""}, "features"),
    "scores too few": ({"scores": [0.1]}, "scores"),
    "quotas too many": ({"quotas": [1.0, 1.0, 1.0]}, "quotas"),
    "k of zero": ({"k": 0}, "k"),
    "k beyond 32 bits": ({"k": 2**40}, "k"),
    "a seed beyond 64 bits": ({"seed": 2**63}, "seed"),
    "a feature version beyond 32 bits": ({"feature_version": 2**31}, "feature_version"),
    "a time after its arrival": ({"decided_at": ARRIVED + FUTURE_TOLERANCE + 1}, "decided_at"),
    "no user": ({"user_id": ""}, "user_id"),
    "a user of 4 KB": ({"user_id": "u" * 4096}, "user_id"),
    "control characters in its id": ({"decision_id": "d\n"}, "decision_id"),
    "a time before all": ({"decided_at": 0}, "decided_at"),
    "a time beyond the calendar": ({"decided_at": 2**62}, "decided_at"),
}


@pytest.mark.parametrize(("fields", "name"), BROKEN.values(), ids=BROKEN)
def test_what_the_log_cannot_hold_is_refused_by_the_name_of_its_field(fields: dict[str, object], name: str) -> None:
    broken = msgspec.structs.replace(decision(2, at=MADE, user_id="u", drawn=DRAWN), **fields)
    rejected = read(msgspec.msgpack.encode(broken))
    assert isinstance(rejected, Rejected)
    assert rejected.reason.startswith(f"{name}: "), rejected


@law
@given(st.binary(max_size=200))
def test_noise_is_refused_with_a_reason_and_never_raises(record: bytes) -> None:
    rejected = read(record)
    assert isinstance(rejected, Rejected)
    assert rejected.reason.startswith("not a decision: ")


def test_a_record_nested_ten_thousand_deep_is_refused() -> None:
    rejected = read(b"\x81\xa1x" + b"\x91" * 10_000)
    assert isinstance(rejected, Rejected)
    assert rejected.reason.startswith("not a decision: ")


def test_the_largest_numbers_that_are_read_can_be_written() -> None:
    made = decision(1, at=ARRIVED + FUTURE_TOLERANCE, seed=-(2**63), feature_version=2**31 - 1, k=2**31 - 1)
    assert read(msgspec.msgpack.encode(made)) == made
    assert decision_table([made]).num_rows == 1
