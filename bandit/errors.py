"""Every error that Query Rewards raises: one class per situation, each also a builtin, each carrying its values."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import ClassVar


class Status(enum.IntEnum):
    """Exit status of the command line; each error says with which one a verb ends."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_PROMOTED = 3  # or not to be told
    UNAVAILABLE = 4


class QueryRewardsError(Exception):
    """Base of all errors of this project. They pass from a worker process to its parent with their values."""

    status: ClassVar[Status] = Status.FAILED

    def __reduce__(self) -> tuple[object, ...]:
        """An exception's own way calls the class with the message alone, which breaks the pool of the worker."""
        return _copied, (type(self), self.args, self.__dict__)


def _copied(kind: type[QueryRewardsError], args: tuple[object, ...], values: dict[str, object]) -> QueryRewardsError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(values)
    return error


class InvalidValueError(QueryRewardsError, ValueError):
    """An argument or a field holds what it must not.

    Attributes: name (which one), expected (in words), received (the value).
    """

    status = Status.USAGE

    def __init__(self, name: str, *, expected: str, received: object) -> None:
        self.name, self.expected, self.received = name, expected, received
        super().__init__(f"{name}: expected {expected}, received {received!r}")


class InvalidSettingError(QueryRewardsError, ValueError):
    """A settings file or an environment variable holds an unknown key or a bad value."""

    status = Status.USAGE

    def __init__(self, source: str, key: str, problem: str) -> None:
        self.source, self.key, self.problem = source, key, problem
        super().__init__(f"{source}: setting {key!r}: {problem}")


class InvalidTableError(QueryRewardsError, ValueError):
    """A Parquet file breaks the schema of its record: the message names the file, the column and the row."""

    def __init__(self, file: str, problem: str, *, column: str | None = None, row: int | None = None) -> None:
        self.file, self.column, self.row, self.problem = file, column, row, problem
        place = file + (f", column {column!r}" if column else "") + (f", row {row}" if row is not None else "")
        super().__init__(f"{place}: {problem}")


class TooManyBadRowsError(QueryRewardsError, ValueError):
    """More rows than `intake.tolerate` allows cannot be used: the step stops, and leaves what it wrote last."""

    def __init__(self, source: str, bad: int, rows: int, tolerate: float, reasons: dict[str, int]) -> None:
        self.source, self.bad, self.rows, self.tolerate, self.reasons = source, bad, rows, tolerate, reasons
        counts = ", ".join(f"{reason} ({count})" for reason, count in reasons.items())
        super().__init__(
            f"{source}: {bad} of {rows} rows cannot be used, more than the share of {tolerate:g} that `intake.tolerate` allows: {counts};"
            " the rows are in data/rejected"
        )


class NothingUsableError(QueryRewardsError, ValueError):
    """A file has nothing that the step could work with: what it wrote last stays."""

    def __init__(self, file: str, problem: str) -> None:
        self.file, self.problem = file, problem
        super().__init__(f"{file}: {problem}; the last snapshot stays")


class SnapshotShrinksError(QueryRewardsError, ValueError):
    """A new snapshot would lose more users than `intake.shrink` allows: the last one stays."""

    def __init__(self, file: str, lost: int, users: int, shrink: float) -> None:
        self.file, self.lost, self.users, self.shrink = file, lost, users, shrink
        super().__init__(
            f"{file}: {lost} of the {users} users of the last snapshot would go, more than the share of {shrink:g} that `intake.shrink`"
            " allows; the last snapshot stays"
        )


class StorageError(QueryRewardsError, OSError):
    """A file cannot be written or read: the disk is full, the folder is read-only, the page is damaged."""

    def __init__(self, file: str, problem: str) -> None:
        self.file, self.problem = file, problem
        super().__init__(f"{file}: {problem}")


class InvalidPropensityError(QueryRewardsError, ValueError):
    """A logged decision cannot have been drawn from the quotas that it names: `row` is its place in the batch."""

    def __init__(self, row: int, problem: str) -> None:
        self.row, self.problem = row, problem
        super().__init__(f"row {row}: {problem}")


class UnknownDecisionError(QueryRewardsError, LookupError):
    """The decision log does not hold this decision."""

    def __init__(self, decision_id: str, place: str) -> None:
        self.decision_id, self.place = decision_id, place
        super().__init__(f"no decision {decision_id!r} in {place}; a new one is there after `query-rewards join`")


class EmptyLogError(QueryRewardsError, LookupError):
    """A step needs a log that has no rows yet."""

    def __init__(self, log: str, place: str) -> None:
        self.log, self.place = log, place
        super().__init__(f"the {log} is empty: no rows found in {place}")


class FoldStateError(QueryRewardsError, LookupError):
    """The sums that the last fold left do not lead to those that are wanted: everything is folded."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class MissingExtraError(QueryRewardsError, ImportError):
    """A verb needs packages that this installation lacks."""

    status = Status.USAGE

    def __init__(self, verb: str, extra: str, module: str) -> None:
        self.verb, self.extra, self.module = verb, extra, module
        super().__init__(f"{verb} needs pip install 'query-rewards[{extra}]' (no module {module!r})")


class DependencyUnavailableError(QueryRewardsError, ConnectionError):
    """A service that this call needs does not answer."""

    status = Status.UNAVAILABLE

    def __init__(self, service: str, place: str, reason: str) -> None:
        self.service, self.place, self.reason = service, place, reason
        super().__init__(f"{service} at {place} is unavailable: {reason}")


class DeadlineExceededError(DependencyUnavailableError):
    """Nor is there time to do without the service: too many others wait."""


class BacklogFullError(QueryRewardsError, BlockingIOError):
    """The feedback stream holds more than may wait: nothing of the call was taken, and the caller keeps it and tries again."""

    status = Status.UNAVAILABLE

    def __init__(self, partition: int, waiting: int, limit: int) -> None:
        self.partition, self.waiting, self.limit = partition, waiting, limit
        super().__init__(f"feedback stream {partition}: {waiting} entries wait to be folded, at most {limit} may; record the events again")


class StreamDiffersError(QueryRewardsError, RuntimeError):
    """Users whose sums in the stream are not those of the batch fold over the same events."""

    def __init__(self, differing: int, users: int) -> None:
        self.differing, self.users = differing, users
        super().__init__(
            f"{differing} of {users} users differ: `query-rewards stream --rebuild` makes the stream's sums anew from the logs"
        )


class FeatureStoreError(QueryRewardsError, RuntimeError):
    """Feast refused: nothing applied yet, or a row that does not fit its own lengths."""


class CorruptModelError(QueryRewardsError, ValueError):
    """A model's bytes are not what its sha256 says, or do not hold what a model holds."""

    def __init__(self, model: str, problem: str) -> None:
        self.model, self.problem = model, problem
        super().__init__(f"model {model}: {problem}")


class LearnerError(QueryRewardsError, RuntimeError):
    """Vowpal Wabbit failed in its child process."""


class ExportMismatchError(QueryRewardsError, RuntimeError):
    """The exported weights do not predict what Vowpal Wabbit predicts: such a model is not registered."""

    def __init__(self, difference: float, row: int, options: str) -> None:
        self.difference, self.row, self.options = difference, row, options
        super().__init__(
            f"the exported weights predict {difference:.3g} else than Vowpal Wabbit (row {row} of the sample, options {options!r}): "
            "the model is not kept"
        )


class NoModelError(QueryRewardsError, LookupError):
    """A verb takes the newest model, and the registry holds none."""

    status = Status.NOT_PROMOTED

    def __init__(self) -> None:
        super().__init__("no model was trained yet: run `query-rewards train`")


class UnknownModelError(QueryRewardsError, LookupError):
    """The registry does not hold this version."""

    status = Status.NOT_PROMOTED

    def __init__(self, version: str, model: str) -> None:
        self.version, self.model = version, model
        super().__init__(f"no version {version!r} of model {model!r}")


class NoEarlierChampionError(QueryRewardsError, LookupError):
    """A rollback needs a model that served before the champion, and none did."""

    status = Status.NOT_PROMOTED

    def __init__(self, model: str) -> None:
        self.model = model
        super().__init__(f"model {model!r}: there is no earlier champion to go back to")


class TooFewRowsError(QueryRewardsError, RuntimeError):
    """There are fewer training rows than a model may learn from."""

    status = Status.NOT_PROMOTED

    def __init__(self, rows: int, minimum: int, why: str = "") -> None:
        self.rows, self.minimum, self.why = rows, minimum, why
        super().__init__(f"{rows} training rows with impressions, training.minimum_rows asks for {minimum}" + (why and f": {why}"))


class NoComparisonError(QueryRewardsError, RuntimeError):
    """The log holds nothing to compare a candidate with the champion on."""

    status = Status.NOT_PROMOTED

    def __init__(self, version: str, champion: str, reason: str) -> None:
        self.version, self.champion, self.reason = version, champion, reason
        super().__init__(f"cannot tell whether version {version} is better than {champion}: {reason}")


class NotBetterError(QueryRewardsError, RuntimeError):
    """An evaluation does not find its target better than the baseline: the verdict, and its reasons."""

    status = Status.NOT_PROMOTED

    def __init__(self, target: str, baseline: str, verdict: str, reasons: Sequence[str]) -> None:
        self.target, self.baseline, self.verdict, self.reasons = target, baseline, verdict, reasons
        super().__init__(f"{target} against {baseline}: {verdict}: {'; '.join(reasons)}")


class NotPromotedError(QueryRewardsError, RuntimeError):
    """A retraining ended without a new champion."""

    status = Status.NOT_PROMOTED

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class LockHeldError(QueryRewardsError, BlockingIOError):
    """Another process runs a step of this deployment."""

    def __init__(self, step: str, owner: str, *, since: str, seconds: float) -> None:
        self.step, self.owner, self.since, self.seconds = step, owner, since, seconds
        super().__init__(
            f"{step!r} has been running as {owner} since {since}, and one step runs at a time; the lease frees itself when that process "
            f"ends, or after {seconds:.0f} s without a heartbeat"
        )


class LeaseLostError(QueryRewardsError, RuntimeError):
    """This run stood still for longer than its lease, and another has taken over: nothing more was written."""

    def __init__(self, step: str) -> None:
        self.step = step
        super().__init__(f"{step!r} stood still for too long and another run has taken over; nothing more was written, run it again")


class OtherDeploymentError(QueryRewardsError, RuntimeError):
    """Redis belongs to another data folder, or to another copy of this one."""

    def __init__(self, place: str, key: str, *, folder: str, host: str, at: str) -> None:
        self.place, self.key, self.folder, self.host, self.at = place, key, folder, host, at
        super().__init__(
            f"Redis at {place} belongs to the deployment in {folder} on {host} (last run {at}), and this data folder is another one or an "
            f"old copy of it: give this one another project name or redis_url; if the other is gone for good, delete the key {key!r} there"
        )


class RegistryError(QueryRewardsError, RuntimeError):
    """MLflow refused, or lacks what this deployment needs: the message says how to go on. `code` is MLflow's own."""

    def __init__(self, problem: str, *, code: str = "") -> None:
        self.problem, self.code = problem, code
        super().__init__(problem)
