"""Columns of files that others wrote, as ours: which types are read without loss, and which rows hold no value that we can use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bandit.ids import CONTROL, MAX_ID_BYTES
from bandit.rewards.feedback import FUTURE_TOLERANCE

Mask = npt.NDArray[np.bool_]
Problems = Iterator[tuple[str, Mask]]
IDS = frozenset({"event_id", "decision_id", "user_id", "cluster_id", "query_id", "item_id"})
CONTROL_PATTERN = "[" + "".join(rf"\x{{{first:x}}}-\x{{{last:x}}}" for first, last in CONTROL) + "]"
_LAST_TIME = 253_402_300_799_999_999  # the end of the year 9999, UTC microseconds
_PER_MICROSECOND = {"s": -1_000_000, "ms": -1000, "us": 1, "ns": 1000}  # below 0: microseconds of one unit
_WAYS_OUT = {
    "id": "numbers such as 123.0 are no identifiers; write them as whole numbers or text (pandas: .astype('Int64'))",
    "zone": "write it with the zone UTC (Spark: timestamp_ltz, pandas: dt.tz_localize('UTC'), Snowflake: timestamp_tz)",
    "time": "write it as a timestamp with the zone UTC",
    "vector": "write it as a list of numbers (Spark: vector_to_array)",
}


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type behind dictionaries and extensions."""
    while True:
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        elif isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        else:
            return kind


def type_problem(kind: pa.DataType, expected: pa.DataType, *, int96: bool = False) -> str:
    """Why a column of this type cannot be read as the expected one, with the way out; empty when it can."""
    kind, way_out = plain_type(kind), ""
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if pa.types.is_timestamp(expected):
        if pa.types.is_timestamp(kind) and kind.tz is None and not int96:
            return f"{kind} has no time zone, expected {expected}: {_WAYS_OUT['zone']}"
        fits, way_out = pa.types.is_timestamp(kind), _WAYS_OUT["time"]
    elif pa.types.is_string(expected):
        whole = pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale == 0)
        fits, way_out = _is_text(kind) or whole, _WAYS_OUT["id"] if numeric else ""
    elif pa.types.is_list(expected):
        fits = _is_list(kind) and not type_problem(kind.value_type, expected.value_type)
        way_out = "" if _is_list(kind) else _WAYS_OUT["vector"]
    elif pa.types.is_floating(expected) or pa.types.is_integer(expected):
        fits = numeric
    else:
        fits = kind == expected
    if fits or pa.types.is_null(kind):
        return ""
    return f"has type {kind}, expected {expected}" + (f": {way_out}" if way_out else "")


def converted(values: pa.Array, expected: pa.DataType) -> tuple[pa.Array, list[tuple[str, Mask]]]:
    """The values as the expected type, null where they are none, and which of them are none for which reason."""
    while isinstance(values.type, pa.BaseExtensionType) or pa.types.is_dictionary(values.type):
        values = values.storage if isinstance(values.type, pa.BaseExtensionType) else values.dictionary_decode()
    if pa.types.is_timestamp(expected):
        return _times(values, expected)
    if pa.types.is_string(expected):
        return _texts(values)
    if pa.types.is_integer(expected):
        return _integers(values, expected)
    if pa.types.is_list(expected) and pa.types.is_floating(expected.value_type):
        return _vectors(values, expected), []
    return values.cast(expected), []


def id_problems(values: pa.Array) -> Problems:
    """The rule of `bandit.ids.id_problem`, for a column of text."""
    size = pc.binary_length(values)
    yield "empty", _mask(pc.equal(size, 0))
    yield f"longer than {MAX_ID_BYTES} bytes", _mask(pc.greater(size, MAX_ID_BYTES))
    if not _plain(values):
        yield "control characters", _mask(pc.match_substring_regex(values, CONTROL_PATTERN))


def time_problems(values: pa.Array, now: int | None) -> Problems:
    """The rule of `bandit.rewards.feedback.time_problem`, for a column of times; without `now` nothing is in the future."""
    at = values.cast(pa.int64())
    yield "no time", _mask(pc.less_equal(at, 0))
    if now is not None:
        yield "in the future", _mask(pc.greater(at, now + FUTURE_TOLERANCE))


def row_problems(table: pa.RecordBatch, *, now: int | None, actions: Sequence[str] | None, nullable: Sequence[str] = ()) -> Problems:
    """Rows of our schema that hold a value which no step can use, by reason: `column: problem`."""
    for field in table.schema:
        values = table.column(field.name)
        if values.null_count and field.name not in nullable:
            yield f"{field.name}: null", _mask(pc.is_null(values))
        found: Problems = iter(())
        if field.name in IDS:
            found = id_problems(values)
        elif pa.types.is_timestamp(field.type):
            found = time_problems(values, now)
        elif field.name == "action" and actions is not None:
            found = iter([("unknown action", ~_mask(pc.is_in(values, pa.array(actions, pa.string()))))])
        for problem, mask in found:
            yield f"{field.name}: {problem}", mask


def _times(values: pa.Array, expected: pa.DataType) -> tuple[pa.Array, list[tuple[str, Mask]]]:
    if pa.types.is_null(values.type):
        return values.cast(expected), []
    raw = values.cast(pa.int64())
    numbers, none = pc.fill_null(raw, 0).to_numpy(), _mask(pc.is_null(raw))
    factor = _PER_MICROSECOND[values.type.unit]
    limit = _LAST_TIME * factor if factor > 0 else _LAST_TIME // -factor
    outside = (numbers > min(limit, 2**63 - 1)) | (numbers < -limit)
    numbers = np.where(outside, 0, numbers)
    scaled = numbers // factor if factor > 0 else numbers * -factor
    return pa.array(scaled, mask=none | outside).cast(expected), [("no time", outside)] if outside.any() else []


def _texts(values: pa.Array) -> tuple[pa.Array, list[tuple[str, Mask]]]:
    if not _is_text(values.type):
        return values.cast(pa.string()), []
    raw = values.cast(pa.binary())
    try:
        return raw.cast(pa.string()), []  # which looks at every byte
    except pa.ArrowInvalid:
        texts = [None if value is None else _decoded(value) for value in raw.to_pylist()]
        broken = np.array([text is None for text in texts]) & ~_mask(pc.is_null(raw))
        return pa.array(texts, pa.string()), [("not UTF-8", broken)]


def _decoded(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


def _integers(values: pa.Array, expected: pa.DataType) -> tuple[pa.Array, list[tuple[str, Mask]]]:
    """Whole numbers; those beyond what a float64 holds exactly are folded below it, as the policies' inputs are logged as such."""
    none = _mask(pc.is_null(values))
    if pa.types.is_floating(values.type) or pa.types.is_decimal(values.type):
        numbers = pc.fill_null(values.cast(pa.float64()), np.nan).to_numpy()
        none |= np.isnan(numbers)
        broken = ~none & ((numbers != np.round(numbers)) | (np.abs(numbers) > _EXACT))
        whole = np.where(none | broken, 0, numbers).astype(np.int64)
        return pa.array(whole, mask=none | broken).cast(expected), [("no whole number", broken)] if broken.any() else []
    numbers = np.zeros(len(values), np.int64) if pa.types.is_null(values.type) else pc.fill_null(values, 0).to_numpy()
    large = numbers.astype(np.int64) if (np.abs(numbers.astype(np.float64)) <= _EXACT).all() else _folded(numbers)
    return pa.array(large, mask=none).cast(expected), []


_EXACT = 2**53


def _folded(numbers: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    exact = np.abs(numbers.astype(np.float64)) <= _EXACT
    return np.where(exact, numbers.astype(np.int64), (numbers.astype(np.uint64) % np.uint64(_EXACT - 111)).astype(np.int64))


def _vectors(values: pa.Array, expected: pa.DataType) -> pa.Array:
    """Lists of numbers; a hole in a list becomes NaN, which is no vector."""
    if pa.types.is_null(values.type):
        return values.cast(expected)
    if not pa.types.is_list(values.type):
        values = values.cast(pa.list_(values.type.value_type))
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy()
    flat = pc.fill_null(values.flatten().cast(pa.float64()), np.nan).to_numpy().astype(np.float32)
    offsets = pa.array(np.append(0, np.cumsum(lengths)), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(flat, expected.value_type), mask=pc.is_null(values))


def _is_text(kind: pa.DataType) -> bool:
    kinds = (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view())
    return any(kind == text for text in kinds)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_list_view(kind))


def _plain(values: pa.Array) -> bool:
    """Whether all bytes of a column are printable ASCII: nearly always, and seen at the speed of memory."""
    data = values.buffers()[2]
    if not data:
        return True
    seen = np.frombuffer(data, np.uint8)
    return bool(not len(seen) or (seen.min() >= 0x20 and seen.max() < 0x7F))


def _mask(values: pa.Array) -> Mask:
    return np.asarray(pc.fill_null(values, pa.scalar(value=False)).to_numpy(zero_copy_only=False), bool)
