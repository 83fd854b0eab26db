"""The command line: `query-rewards VERB`, the options that verbs share, data on stdout, progress on stderr, errors as one line.

Exit status: `bandit.errors.Status`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bandit.errors import InvalidValueError, MissingExtraError, QueryRewardsError, Status
from bandit.rewards.feedback import FUTURE_TOLERANCE
from bandit.settings.load import Settings, load_settings
from training.claim import running
from training.lock import leased

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Learn which of a user's clusters are worth querying.")
stderr = Console(stderr=True)

_OURS = {"bandit", "feature_repo", "serving", "training"}
Arguments = ParamSpec("Arguments")
SettingsFile = Annotated[Path, typer.Option("--settings", help="Settings file.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
AsOf = Annotated[str, typer.Option(help="Reference time, ISO 8601 with a time zone; now when left out.")]


def verb(*, extra: str) -> Callable[[Callable[Arguments, None]], Callable[Arguments, None]]:
    """Add a function to the command line; `extra` is the one that brings what the function imports."""

    def add(function: Callable[Arguments, None]) -> Callable[Arguments, None]:
        @app.command()
        @functools.wraps(function)
        def run(*arguments: Arguments.args, **options: Arguments.kwargs) -> None:
            try:
                function(*arguments, **options)
            except ModuleNotFoundError as error:
                module = (error.name or "").partition(".")[0]
                if module in _OURS:
                    raise
                raise MissingExtraError(function.__name__, extra, module) from error

        return function

    return add


def main() -> None:
    """Run a verb, and turn our errors into one line and an exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    for noisy in ("feast", "mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        app()
    except QueryRewardsError as error:
        stderr.print(f"query-rewards: {error}", style="bold", highlight=False, markup=False, soft_wrap=True)
        sys.exit(error.status)
    except OSError as error:  # a lock, a page or an output that the disk does not take
        named_file = error.filename or "a file"
        stderr.print(f"query-rewards: {named_file}: {error.strerror or error}", style="bold", highlight=False, markup=False, soft_wrap=True)
        sys.exit(Status.FAILED)


def stop_event() -> threading.Event:
    """Set when the process is asked to end."""
    event = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: event.set())
    return event


def run_step(step: str, settings_file: Path, as_json: bool, work: Callable[[Settings], object], *, writes_redis: bool = True) -> None:
    """One step under the deployment's lease, and its result shown."""
    settings = load_settings(settings_file)
    with running(settings, step) if writes_redis else leased(settings.data_path, step), stderr.status(step):
        result = work(settings)
    show(result, as_json)


def progress_bar() -> Progress:
    """A bar for steps that can say how far they are; none where nobody looks."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=stderr, disable=not stderr.is_terminal)


def show(result: object, as_json: bool) -> None:
    """A record or a dictionary, as a table or as one line of JSON."""
    content: dict[str, Any] = result if isinstance(result, dict) else dataclasses.asdict(result)  # type: ignore[call-overload]
    _say_put_aside(content)
    if as_json:
        typer.echo(json.dumps(content))
        return
    table = Table(show_header=False, box=None)
    for name, value in content.items():
        for key, cell in value.items() if isinstance(value, dict) else [("", value)]:
            table.add_row(f"{name}.{key}" if key else name, str(cell))
    Console().print(table)


def _say_put_aside(content: dict[str, Any]) -> None:
    """What a step did not take, or not as it was, on stderr: one line each."""
    lines = [f"put aside: {count} rows, {reason}" for reason, count in (content.get("rejected") or {}).items()]
    lines += [f"in quarantine: {file}: {reason}" for file, reason in (content.get("quarantined") or {}).items()]
    if content.get("normalised"):
        lines.append(f"{content['normalised']} embeddings were not of length 1 and were brought to it")
    if content.get("repeated"):
        lines.append(f"{content['repeated']} rows of the history were repetitions and counted once")
    for line in lines:
        stderr.print(line, highlight=False, markup=False, soft_wrap=True)
    for inner in content.values():
        if isinstance(inner, dict):
            _say_put_aside(inner)


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
    at = round(moment.timestamp() * 1e6)
    if at > now() + FUTURE_TOLERANCE:  # a later run could not follow a step of the year 2099
        raise InvalidValueError("--as-of", expected="a time that is not in the future", received=text)
    return at
