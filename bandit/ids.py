"""Identifiers: one rule for users, items, clusters and events, at every door where they come in."""

from __future__ import annotations

import re

MAX_ID_BYTES = 256
CONTROL = ((0x00, 0x1F), (0x7F, 0x9F), (0x2028, 0x2029))  # first and last code point: control characters and line breaks
_control = re.compile("[" + "".join(f"\\u{first:04x}-\\u{last:04x}" for first, last in CONTROL) + "]")


def id_problem(value: str) -> str:
    """Why a text cannot be an identifier; empty when it can."""
    if not value:
        return "empty, expected an identifier"
    if value.isascii() and value.isprintable() and len(value) <= MAX_ID_BYTES:
        return ""
    if _control.search(value):
        return f"control characters in {value[:MAX_ID_BYTES]!r}"
    try:
        size = len(value) if len(value) > MAX_ID_BYTES else len(value.encode())
    except UnicodeEncodeError:
        return f"not UTF-8: {value[:MAX_ID_BYTES]!r}"
    return f"{len(value)} characters, expected at most {MAX_ID_BYTES} bytes" if size > MAX_ID_BYTES else ""
