"""The feedback log: Parquet files below `feedback/`, in any number, each event at least once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from bandit.records import Feedback
from bandit.settings.load import Settings
from training.logs.schemas import FEEDBACK
from training.logs.tables import write_table


def append_feedback(settings: Settings, events: Sequence[Feedback], name: str) -> Path:
    """Write events as one file of the log, whole or not at all; the same name again replaces it."""
    file = settings.data_path / "feedback" / f"{name}.parquet"
    write_table(feedback_table(events), file)
    return file


def feedback_table(events: Sequence[Feedback]) -> pa.Table:
    """Events as rows of the Parquet log."""
    return pa.table([pa.array([getattr(event, field.name) for event in events], field.type) for field in FEEDBACK], schema=FEEDBACK)
