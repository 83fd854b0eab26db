"""Numbers and texts out of Feast's protobuf messages, without a Python object for each number.

A `Value` that holds a list is: tag, length, and within that for numbers tag, length, payload; for texts again and again tag, length,
text. What does not look exactly like this is left to protobuf. Source: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import numpy as np

from bandit.types import Floats, Ints

ELEMENT = 0x0A  # tag of field 1, of the kind that has a length


def doubles(raw: bytes, tag: int) -> Floats | None:
    """The doubles of a `Value` whose list has this tag; None for anything else."""
    start = _numbers_start(raw, tag)
    if start < 0 or (len(raw) - start) % 8:
        return None
    return np.frombuffer(raw[start:], np.float64)  # a copy, for its place in memory: whole numbers of eight bytes


def integers(raw: bytes, tag: int) -> Ints | None:
    """The signed integers of a `Value` whose list has this tag; None for anything else."""
    start, end, count = _numbers_start(raw, tag), len(raw), 0
    if start < 0 or raw[end - 1] >= 0x80:
        return None
    for at in range(start, end):
        count += raw[at] < 0x80
    numbers = np.empty(count, np.uint64)
    _fill(numbers, raw, start)
    return numbers.view(np.int64)


def _numbers_start(raw: bytes, tag: int) -> int:
    """Where the numbers begin, and go on to the end; -1 when they do not."""
    end = len(raw)
    start = _inside(raw, 0, tag, end)
    return _inside(raw, start, ELEMENT, end) if start >= 0 else -1


def _inside(raw: bytes, at: int, tag: int, end: int) -> int:
    """Where the content of the field at `at` begins, when it has this tag and reaches to the end exactly; else -1."""
    if at >= end or raw[at] != tag:
        return -1
    at, length, shift = at + 1, 0, 0
    while at < end and shift < 28:
        byte = raw[at]
        at += 1
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            return at if at + length == end else -1
        shift += 7
    return -1


def _fill(numbers: np.ndarray, raw: bytes, start: int) -> None:
    place, shift, value = 0, 0, 0
    for at in range(start, len(raw)):
        part = raw[at] & 0x7F
        value |= part << shift
        shift += 7
        if raw[at] < 0x80:
            numbers[place] = value
            place, shift, value = place + 1, 0, 0


def texts(raw: bytes, tag: int) -> list[str] | None:
    """The texts of a `Value` whose list has this tag; None for anything else."""
    end, found = len(raw), []
    at = _inside(raw, 0, tag, end)
    if at < 0:
        return None
    while at < end:
        if raw[at] != ELEMENT:
            return None
        at, length, shift, more = at + 1, 0, 0, True
        while more and at < end and shift < 28:
            byte = raw[at]
            at += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            more = byte >= 0x80
        if more or at + length > end:
            return None
        found.append(raw[at : at + length].decode())
        at += length
    return found
