"""`python -m serving VERB`: the verbs of the serving side, which a host without the training side can run too."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from bandit.errors import BacklogFullError, DependencyUnavailableError, InvalidSettingError, InvalidTableError, QueryRewardsError
from bandit.records import Feedback
from bandit.settings.load import DEFAULT_FILE
from serving.feedback_log import FeedbackLog

FAILED, USAGE, AWAY = 1, 2, 4
_AT_ONCE = 5000


def main(arguments: list[str] | None = None) -> int:
    """Run a verb; returns the exit status."""
    parser = argparse.ArgumentParser(prog="query-rewards")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("feedback", help="append feedback events from a file to the stream")
    verb.add_argument("file", type=Path, help="one JSON object a line: " + ", ".join(Feedback.__struct_fields__))
    verb.add_argument("--settings", type=Path, default=Path(DEFAULT_FILE), help="settings file")
    verb.add_argument("--json", action="store_true", help="one JSON object on stdout")
    verb = verbs.add_parser("serve", help="serve POST /v1/select and the like over HTTP, until SIGTERM")
    verb.add_argument("--settings", type=Path, default=Path(DEFAULT_FILE), help="settings file; section [http]")
    given = parser.parse_args(arguments)
    try:
        if given.verb == "serve":
            from serving.http_service.server import serve  # noqa: PLC0415 -- an extra, which those who only import the library do without

            logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
            serve(given.settings)
            return 0
        return _feedback(given.file, given.settings, as_json=given.json)
    except (DependencyUnavailableError, BacklogFullError) as error:
        return _fail(error, AWAY)
    except InvalidSettingError as error:
        return _fail(error, USAGE)
    except QueryRewardsError as error:
        return _fail(error, FAILED)


def _feedback(file: Path, settings: Path, *, as_json: bool) -> int:
    accepted, durable, refused = 0, 0, 0
    with FeedbackLog.open(settings) as log:
        for first, events in _batches(file):
            recorded = log.record(events)
            accepted, durable, refused = accepted + recorded.accepted, durable + recorded.durable, refused + len(recorded.refused)
            for one in recorded.refused:
                print(f"{file}, line {first + one.index}: {one.reason}", file=sys.stderr)  # noqa: T201
    counts = {"accepted": accepted, "durable": durable, "refused": refused}
    print(json.dumps(counts) if as_json else "  ".join(f"{name} {count}" for name, count in counts.items()))  # noqa: T201
    return FAILED if refused else 0


def _batches(file: Path) -> Iterator[tuple[int, list[bytes]]]:
    """Lines, and the number of the first of them."""
    try:
        with file.open("rb") as lines:
            first = 1
            while batch := list(islice(lines, _AT_ONCE)):
                yield first, batch
                first += len(batch)
    except OSError as error:
        raise InvalidTableError(str(file), f"cannot be read: {error.strerror}") from error


def _fail(error: Exception, status: int) -> int:
    print(f"query-rewards: {error}", file=sys.stderr)  # noqa: T201
    return status


if __name__ == "__main__":
    sys.exit(main())
