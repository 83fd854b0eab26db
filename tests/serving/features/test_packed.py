"""Reading lists out of protobuf messages without protobuf: what it reads, it reads as protobuf does; the rest it leaves alone."""

from __future__ import annotations

import numpy as np
import pytest
from feast.protos.feast.types.Value_pb2 import Value
from hypothesis import example, given
from hypothesis import strategies as st

from serving.features import feast_format, packed
from tests.plain import both
from tests.strategies import law

FORMS = both("serving.features.packed")
INTEGERS, DOUBLES, STRINGS = feast_format._INTEGERS, feast_format._DOUBLES, feast_format._STRINGS


@law
@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
@example([])
@example([-1, 0, 127, 128, 2**63 - 1, -(2**63)])
def test_integers(values):
    raw = Value(int64_list_val={"val": values}).SerializeToString()
    assert feast_format.integers(raw).tolist() == values
    assert feast_format.integers(raw).dtype == np.int64
    assert all(form.integers(raw, INTEGERS).tolist() == values for form in FORMS if values)


@law
@given(st.lists(st.floats(allow_nan=False)))
@example([])
def test_doubles(values):
    raw = Value(double_list_val={"val": values}).SerializeToString()
    assert feast_format.doubles(raw).tolist() == values
    assert feast_format.doubles(raw).flags.aligned
    assert all(form.doubles(raw, DOUBLES).tolist() == values for form in FORMS if values)


@law
@given(st.lists(st.text()))
@example([""])
@example(["a" * 127, "b" * 128, "c" * 20_000])
def test_strings(values):
    raw = Value(string_list_val={"val": values}).SerializeToString()
    assert feast_format.strings(raw) == list(feast_format.lazy_strings(raw)) == values
    assert all(form.texts(raw, STRINGS) == values for form in FORMS)


@law
@given(st.binary(max_size=40), st.sampled_from([INTEGERS, DOUBLES, STRINGS]))
def test_bytes_of_any_kind_are_read_as_protobuf_reads_them_or_left_alone(noise, tag):
    for raw in (noise, bytes([tag, len(noise)]) + noise, bytes([tag, len(noise) + 2, 0x0A, len(noise)]) + noise):
        read = {INTEGERS: packed.integers, DOUBLES: packed.doubles, STRINGS: packed.texts}[tag]
        field = {INTEGERS: "int64_list_val", DOUBLES: "double_list_val", STRINGS: "string_list_val"}[tag]
        try:
            found = read(raw, tag)
        except UnicodeDecodeError:
            continue
        if found is not None:
            try:
                expected = list(getattr(Value.FromString(raw), field).val)
            except Exception as error:
                pytest.fail(f"{raw!r} is read as {found!r}, protobuf says {error}")
            np.testing.assert_array_equal(found, expected)


def test_another_kind_of_value_is_an_empty_list():
    for raw in (b"", Value(int64_val=5).SerializeToString(), Value(string_val="a").SerializeToString()):
        assert [len(read(raw)) for read in (feast_format.integers, feast_format.doubles, feast_format.strings)] == [0, 0, 0]
