"""The verbs of the serving side."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from bandit.errors import InvalidTableError, Status
from bandit.records import Feedback
from bandit.settings.load import DEFAULT_FILE
from serving.feedback_log import FeedbackLog

_LINES_PER_CALL = 5000
SettingsFile = Annotated[Path, typer.Option("--settings", help="Settings file.")]


def feedback(
    file: Annotated[Path, typer.Argument(help="One JSON object a line: " + ", ".join(Feedback.__struct_fields__))],
    settings_file: SettingsFile = Path(DEFAULT_FILE),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Append feedback events from a file to the stream. Exit 1 when some were rejected: stderr names their lines."""
    counts = {"accepted": 0, "durable": 0, "rejected": 0}
    with FeedbackLog.open(settings_file) as log:
        for first, events in _batches(file):
            recorded = log.record(events)
            counts["accepted"] += recorded.accepted
            counts["durable"] += recorded.durable
            counts["rejected"] += len(recorded.rejected)
            for event in recorded.rejected:
                typer.echo(f"{file}, line {first + event.index}: {event.reason}", err=True)
    typer.echo(json.dumps(counts) if as_json else "  ".join(f"{name} {count}" for name, count in counts.items()))
    if counts["rejected"]:
        raise typer.Exit(Status.FAILED)


def serve(settings_file: SettingsFile = Path(DEFAULT_FILE)) -> None:
    """Serve POST /v1/select and the like over HTTP, until SIGTERM; the settings' section http says where."""
    from serving.http_service import server  # noqa: PLC0415 -- an extra, which those who only import the library do without

    logging.getLogger().setLevel(logging.INFO)
    server.serve(settings_file)


def _batches(file: Path) -> Iterator[tuple[int, list[bytes]]]:
    """Lines, and the number of the first of them."""
    try:
        with file.open("rb") as lines:
            first = 1
            while batch := list(islice(lines, _LINES_PER_CALL)):
                yield first, batch
                first += len(batch)
    except OSError as error:
        raise InvalidTableError(str(file), f"cannot be read: {error.strerror}") from error
