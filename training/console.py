"""What the verbs of the command line share: their options, and how they show what they do. Data on stdout, progress on stderr."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bandit.errors import InvalidValueError
from bandit.settings.load import Settings, load_settings
from training.lock import locked

stderr = Console(stderr=True)

SettingsFile = Annotated[Path, typer.Option("--settings", help="Settings file.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
AsOf = Annotated[str, typer.Option(help="Reference time, ISO 8601 with a time zone; now when left out.")]


def fail(error: Exception, status: int) -> None:
    """One line, and the exit status."""
    stderr.print(f"query-rewards: {error}", style="bold", highlight=False, markup=False, soft_wrap=True)
    sys.exit(status)


def run_step(step: str, settings_file: Path, as_json: bool, work: Callable[[Settings], object]) -> None:
    """One step under the deployment's lock, and its result shown."""
    settings = load_settings(settings_file)
    with locked(settings.data_path, step), stderr.status(step):
        result = work(settings)
    show(result, as_json)


def progress_bar() -> Progress:
    """A bar for steps that can say how far they are; none where nobody looks."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=stderr, disable=not stderr.is_terminal)


def show(result: object, as_json: bool) -> None:
    """A record or a dictionary, as a table or as one line of JSON."""
    content: dict[str, Any] = result if isinstance(result, dict) else dataclasses.asdict(result)  # type: ignore[call-overload]
    if as_json:
        typer.echo(json.dumps(content))
        return
    table = Table(show_header=False, box=None)
    for name, value in content.items():
        for key, held in value.items() if isinstance(value, dict) else [("", value)]:
            table.add_row(f"{name}.{key}" if key else name, str(held))
    Console().print(table)


def now() -> int:
    """The clock, UTC microseconds."""
    return time.time_ns() // 1000


def time_of(text: str) -> int:
    """What --as-of says, UTC microseconds. Raises: InvalidValueError."""
    if not text:
        return now()
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidValueError("--as-of", expected="ISO 8601, such as 2026-05-01T00:00:00+00:00", received=text) from error
    if moment.tzinfo is None:
        raise InvalidValueError("--as-of", expected="a time with a time zone", received=text)
    return round(moment.timestamp() * 1e6)
