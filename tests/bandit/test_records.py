"""Records on the wire, and identifiers that sort by time."""

from __future__ import annotations

import uuid

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit.records import Decision, Feedback, Query, uuid7
from tests.strategies import NOW, law

FEATURES = np.random.default_rng(0).normal(size=(3, 4)).astype("<f4")
QUERY = Query(item_id="i1", cluster_id="c1", propensity=0.25)
DECISION = Decision(
    decision_id=uuid7(NOW, bytes(10)),
    user_id="u",
    decided_at=NOW,
    policy="bandit",
    model_version="7",
    k=2,
    seed=2**63 - 1,
    feature_version=1,
    cluster_ids=["c1", "c2", "ü"],
    features=FEATURES.tobytes(),
    scores=[0.1, -0.2, 1 / 3],
    quotas=[1.0, 0.5, 0.5],
    caps=[1.0, 2.0, 3.0],
    queries=[QUERY],
    context={"surface": "home"},
    degraded=False,
)
FEEDBACK = Feedback(event_id="e", decision_id="d", user_id="u", cluster_id="c", query_id="q", item_id="i", action="repin", occurred_at=NOW)


@law
@given(st.integers(0, (1 << 48) * 1000 - 1), st.binary(min_size=10, max_size=10))
def test_a_uuid7_is_a_valid_uuid_of_version_7_that_tells_its_millisecond(at, entropy):
    text = uuid7(at, entropy)
    parsed = uuid.UUID(text)
    assert str(parsed) == text
    assert parsed.version == 7
    assert parsed.variant == uuid.RFC_4122
    assert parsed.int >> 80 == at // 1000


@law
@given(st.integers(0, 2 * NOW), st.integers(1000, NOW), st.binary(min_size=10, max_size=10), st.binary(min_size=10, max_size=10))
def test_a_later_millisecond_sorts_later_whatever_the_entropy(at, elapsed, first, second):
    assert uuid7(at, first) < uuid7(at + elapsed, second)


def test_entropy_decides_within_a_millisecond():
    assert uuid7(NOW, bytes(10)) == uuid7(NOW, bytes(10))
    assert len({uuid7(NOW) for _ in range(1000)}) == 1000
    assert len({uuid7(NOW, (1 << bit).to_bytes(10, "big")) for bit in range(74)}) == 74


@pytest.mark.parametrize("record", [QUERY, DECISION, FEEDBACK], ids=lambda record: type(record).__name__)
def test_a_record_survives_messagepack_bit_for_bit_and_is_frozen(record):
    data = msgspec.msgpack.encode(record)
    again = msgspec.msgpack.decode(data, type=type(record))
    assert again == record
    assert msgspec.msgpack.encode(again) == data
    with pytest.raises(AttributeError):
        setattr(record, record.__struct_fields__[0], "other")


@pytest.mark.parametrize("record", [QUERY, DECISION, FEEDBACK], ids=lambda record: type(record).__name__)
def test_a_record_that_lacks_a_field_is_refused(record):
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(record))
    late = {"inputs", "arm", "mode"}  # came later: a decision that was logged before them is read all the same
    for name in set(record.__struct_fields__) - late:
        with pytest.raises(msgspec.ValidationError, match=name):
            msgspec.msgpack.decode(msgspec.msgpack.encode({key: value for key, value in fields.items() if key != name}), type=type(record))


def test_a_decision_gives_back_the_features_and_quotas_as_served():
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(DECISION), type=Decision)
    np.testing.assert_array_equal(again.feature_matrix(), FEATURES)
    assert again.feature_matrix().dtype == np.float32
    assert again.quotas == [1.0, 0.5, 0.5]
