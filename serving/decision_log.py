"""The decision log: one Redis stream per partition of users, written before the selection is returned."""

from __future__ import annotations

import hiredis
import msgspec

from bandit.records import Decision
from feature_repo import names
from feature_repo.keys import Keys

_encoder = msgspec.msgpack.Encoder()


def append_command(decision: Decision, keys: Keys) -> bytes:
    """The packed command that logs one decision: *accepted* when Redis has answered, *durable* as its own `appendfsync` makes it.

    `training` moves decisions to Parquet and trims the streams; nothing is trimmed by length.
    """
    command: tuple[str | bytes, ...] = (
        "XADD",
        keys.of_user(decision.user_id).decisions,
        "*",
        names.RECORD_FIELD,
        _encoder.encode(decision),
    )
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub asks for tuples of one
    return packed
