"""Evaluate: what a policy would have earned on logged decisions, beside whether that number means anything; the log is streamed."""

from __future__ import annotations

import multiprocessing
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bandit.errors import EmptyLogError, InvalidPropensityError, InvalidTableError, InvalidValueError
from bandit.model.exploration import Exploration
from bandit.model.featurize import FEATURE_NAMES, rebase
from bandit.model.linear_model import LinearModel
from bandit.ope.diagnostics import audit, diagnose
from bandit.ope.estimators import ESTIMATORS
from bandit.ope.estimators.batch import BUCKETS, Batch, refuse_bad_propensities
from bandit.ope.gate import Gate
from bandit.ope.lift import differences
from bandit.policy.logged_inputs import INPUTS, evidence_from_inputs
from bandit.policy.scores import POLICIES, Candidates, plan
from bandit.rewards.scheme import RewardScheme
from bandit.types import Floats, Ints, Prior, Rate
from training.evaluation.result import Evaluation, PartialSums, evaluation_of
from training.models.outcomes import RATES, TOTALS, flat, left_out, matrix, padded, read_group

LOGGED = "logged"  # the baseline that is what was really drawn from
ROWS_AT_ONCE = 8192  # keeps the matrices of a batch in the processor's cache
_MODEL_ROWS = 100_000  # decisions that the model of the reward is fitted on: it has two numbers
# Of a policy without a model, none of which looks at them.
_UNREAD_PRIOR = Prior(rate=Rate(mean=0.0, strength=1.0))
_UNREAD_EXPLORATION = Exploration(optimism=0.0, budget=1.0, impressions_per_query=1.0, residual_limit=0.0)
_CELLS = ["drawn", "draws", "shown", "rewards"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A policy to value: its name, a model if it takes one, and what to call it. `LOGGED` is the policy that made each decision."""

    label: str
    policy: str
    model: LinearModel | None = None

    @property
    def columns(self) -> list[str]:
        """What it reads of the log beside quotas and caps."""
        if self.policy == LOGGED:
            return []
        policy = POLICIES[self.policy]
        return [*policy.inputs, *(["features", TOTALS] if policy.takes_model else [])]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionFilter:
    """Which decisions count: those of one model version, and those later than what taught a model (UTC microseconds); all by default."""

    model: str = ""
    after: int = 0

    @property
    def columns(self) -> list[str]:
        """What it must be told by."""
        return [*(["model_version"] if self.model else []), *(["decided_at"] if self.after else [])]

    def notes(self) -> list[str]:
        """What a reader should know of it."""
        moment = datetime.fromtimestamp(self.after / 1e6, UTC)
        return [f"only decisions after {moment:%Y-%m-%d %H:%M} count: those before taught a model"] if self.after else []

    def mask(self, record: pa.RecordBatch) -> npt.NDArray[np.bool_] | None:
        """Which rows count, None for all."""
        if not self.columns:
            return None
        mask = np.ones(record.num_rows, np.bool_)
        if self.model:
            mask &= np.asarray(pc.equal(record["model_version"], self.model))
        if self.after:
            mask &= record["decided_at"].to_numpy() > self.after
        return mask


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationTask:
    """What a worker process is told: the file, the target, the baseline, estimators, the model of the reward, the range of rewards."""

    file: Path
    target: Target
    baseline: Target
    estimators: tuple[str, ...]
    reward_model: tuple[float, float]
    scheme: RewardScheme
    only: DecisionFilter


def evaluate_log(
    file: Path,
    target: Target,
    baseline: Target,
    gate: Gate,
    scheme: RewardScheme,
    *,
    rng: np.random.Generator,
    estimators: Sequence[str] = tuple(ESTIMATORS),
    only: DecisionFilter = DecisionFilter(),
    processes: int = 1,
) -> Evaluation:
    """Value a target on a file of outcomes.

    Args:
        file: as `join` writes it.
        target: to be valued.
        baseline: to be compared with.
        gate: thresholds of the verdict.
        scheme: declares the range of rewards.
        rng: of the bootstrap.
        estimators: which to report; the verdict rests on the doubly robust difference in any case.
        only: which decisions count.
        processes: that share the row groups.

    Raises: EmptyLogError, InvalidTableError naming the row of a propensity, a quota sum or a reward that cannot be.
    """
    if not file.exists():
        raise EmptyLogError("log of outcomes", f"{file}; run `query-rewards join` first")
    with pq.ParquetFile(file) as source:
        groups, notes, rows = source.num_row_groups, left_out(source), source.metadata.num_rows
    if not rows:
        raise EmptyLogError("log of outcomes", "; ".join([str(file), *notes]))
    task = EvaluationTask(
        file=file,
        target=target,
        baseline=baseline,
        estimators=tuple(estimators),
        reward_model=fit_reward(file),
        scheme=scheme,
        only=only,
    )
    total: PartialSums | None = None
    for part in _parts(task, groups, processes):
        total = part if total is None else total + part
    if total is None:
        raise EmptyLogError("log of outcomes", str(file))
    doubts = ["no decision is later than those that taught the models"] if only.after and not total.diagnostics.decisions else []
    return evaluation_of(total, target.label, baseline.label, gate, rng, [*notes, *only.notes()], doubts)


def _parts(task: EvaluationTask, groups: int, processes: int) -> Iterator[PartialSums]:
    work = partial(value_groups, task)
    if processes == 1 or groups == 1:
        yield from (work([group]) for group in range(groups))
        return
    context = multiprocessing.get_context("spawn")  # a fork would share this process' threads
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        yield from pool.map(work, [[group] for group in range(groups)])


def value_groups(task: EvaluationTask, groups: list[int]) -> PartialSums:
    """Sums over some row groups of the file."""
    wanted = {"user_id", "k", "quotas", "caps", *_CELLS, RATES, *task.target.columns, *task.baseline.columns}
    columns = [*wanted, *task.only.columns]
    total: PartialSums | None = None
    for group in groups:
        whole = read_group(task.file, group, columns)
        users = _buckets(whole["user_id"])
        mine = task.only.mask(whole)
        for start in range(0, whole.num_rows, ROWS_AT_ONCE):
            record, bucket = whole.slice(start, ROWS_AT_ONCE), users[start : start + ROWS_AT_ONCE]
            rows = np.arange(start, start + len(record))
            if mine is not None:
                kept = mine[start : start + ROWS_AT_ONCE]
                record, bucket, rows = record.filter(pa.array(kept)), bucket[kept], rows[kept]
            try:
                part = value_batch(record, bucket, task)
            except InvalidTableError as error:
                row = _rows_before(task.file, group) + int(rows[error.row or 0])
                raise InvalidTableError(error.file, error.problem, column=error.column, row=row) from error
            total = part if total is None else total + part
    if total is None:
        raise EmptyLogError("log of outcomes", str(task.file))
    return total


def _rows_before(file: Path, group: int) -> int:
    """Rows of the file that come before a row group."""
    with pq.ParquetFile(file) as source:
        return sum(source.metadata.row_group(before).num_rows for before in range(group))


def value_batch(record: pa.RecordBatch, users: Ints, task: EvaluationTask) -> PartialSums:
    """Sums over one batch, whose users fall into these buckets: the quotas of both policies are computed here.

    Raises: InvalidTableError naming the row of the batch.
    """
    width = int(pc.max(pc.list_value_length(record["quotas"])).as_py() or 1)
    k = record["k"].to_numpy().astype(np.float64)
    logged, caps = padded(record["quotas"], width), padded(record["caps"], width)
    row = np.repeat(np.arange(len(record)), record["drawn"].value_lengths().to_numpy())
    place, count, reward = flat(record["drawn"]).astype(np.int64), flat(record["draws"]).astype(np.float64), flat(record["rewards"])
    draws = np.zeros_like(logged)
    draws[row, place] = count
    try:
        refuse_bad_propensities(logged, draws, caps, np.minimum(k, caps.sum(axis=1)))
    except InvalidPropensityError as error:
        raise InvalidTableError(str(task.file), error.problem, column="quotas", row=error.row) from error
    _refuse_bad_rewards(record, row, reward, task)
    intercept, slope = task.reward_model
    predicted = np.where(caps > 0.0, intercept + slope * padded(record[RATES], width), 0.0)
    quotas = [
        logged if one.policy == LOGGED else matrix(planned(record, one), record["caps"], width) for one in (task.target, task.baseline)
    ]

    def batch(wanted: Floats) -> Batch:
        return Batch(
            queries=wanted.sum(axis=1),
            users=users,
            row=row,
            weight=wanted[row, place] / logged[row, place],
            draws=count,
            reward=reward,
            direct=(wanted * predicted).sum(axis=1),
            predicted=predicted[row, place],
        )

    target, baseline = (batch(wanted) for wanted in quotas)
    return PartialSums(
        target={name: ESTIMATORS[name].observe(target) for name in task.estimators},
        baseline={name: ESTIMATORS[name].observe(baseline) for name in task.estimators},
        difference=differences(ESTIMATORS["dr"], target, baseline),
        diagnostics=diagnose(target, logged, quotas[0]),
        audit=audit(logged, draws),
    )


def planned(record: pa.RecordBatch, target: Target) -> Floats:
    """Quotas that a policy would have given the logged decisions, float64 (n,) over the candidates of all, one decision after the other.

    Under the model that served they are the logged quotas, to the last bit (`tests/training/evaluation/test_same_quotas.py`).
    """
    policy, model = POLICIES[target.policy], target.model
    caps, lengths, k = flat(record["caps"]), record["caps"].value_lengths().to_numpy(), record["k"].to_numpy()
    if not len(caps):  # a batch of which the filter leaves no decision
        return np.zeros(0)
    columns = {name: flat(record[name]) for name in policy.inputs}
    unread = np.full(len(caps), np.nan)  # what a policy does not say that it reads: it shall not decide
    evidence = evidence_from_inputs(columns, unread)
    features = np.empty((len(caps), 0), np.float32)
    if policy.takes_model and model is not None:
        features = flat(record["features"]).reshape(len(caps), len(FEATURE_NAMES)).astype(np.float32, copy=False)
        totals = flat(record[TOTALS]).reshape(-1, len(INPUTS)).repeat(lengths, axis=0)
        reward, impressions = totals[:, INPUTS.index("reward_long")], totals[:, INPUTS.index("impressions_long")]
        features = rebase(features, evidence, (reward, impressions), columns["topic_ids"].astype(np.int64), model.prior)
    candidates = Candidates(
        actions=columns.get("actions", unread),
        importance=columns.get("importance", unread),
        evidence=evidence,
        features=features,
        prior=model.prior if model else _UNREAD_PRIOR,
        model=model,
        exploration=model.manifest.exploration if model else _UNREAD_EXPLORATION,
        offsets=np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))),
    )
    quotas = plan(target.policy, candidates, np.maximum(k, 1), caps).quotas
    return np.where(np.repeat(k, lengths) > 0, quotas, 0.0)  # a choice of no queries may have been logged for a caller


def _refuse_bad_rewards(record: pa.RecordBatch, row: Ints, reward: Floats, task: EvaluationTask) -> None:
    shown = flat(record["shown"]).astype(np.float64)
    low, high = shown * task.scheme.minimum, shown * task.scheme.maximum
    bad = ~((reward >= low - 1e-9) & (reward <= high + 1e-9))
    if bad.any():
        place = int(np.argmax(bad))
        problem = f"{reward[place]:g} over {shown[place]:g} impressions, expected within [{low[place]:g}, {high[place]:g}]"
        raise InvalidTableError(str(task.file), problem, column="rewards", row=int(row[place]))


def fit_reward(file: Path) -> tuple[float, float]:
    """Intercept and slope of the reward of a draw against the cluster's shrunk rate, by least squares: the model of dm, dr and switch.

    Two numbers, from as many decisions as the first row groups hold: too few to fit noise.
    """
    moments, seen = np.zeros((2, 2)), 0
    right = np.zeros(2)
    with pq.ParquetFile(file) as source:
        groups = source.num_row_groups
    for group in range(groups):
        record = read_group(file, group, [RATES, "drawn", "draws", "rewards"])
        lengths = record[RATES].value_lengths().to_numpy()
        starts = np.cumsum(lengths) - lengths
        row = np.repeat(np.arange(len(record)), record["drawn"].value_lengths().to_numpy())
        rate = flat(record[RATES])[starts[row] + flat(record["drawn"]).astype(np.int64)].astype(np.float64)
        draws = flat(record["draws"]).astype(np.float64)
        x = np.stack((np.ones_like(rate), rate), axis=1)
        moments += (x * draws[:, None]).T @ x
        right += x.T @ flat(record["rewards"])
        seen += len(record)
        if seen >= _MODEL_ROWS:
            break
    intercept, slope = np.linalg.lstsq(moments, right, rcond=1e-9)[0].tolist() if moments[0, 0] else (0.0, 0.0)
    return intercept, slope


def _buckets(users: pa.Array) -> Ints:
    """Bucket of each row's user: a user falls into the same one in every file and on every machine."""
    names = users.dictionary.to_pylist()
    buckets = np.array([zlib.crc32(name.encode()) % BUCKETS for name in names], np.int64)
    return np.asarray(buckets[users.indices.to_numpy()], np.int64)


def target_of(policy: str, version: str, load: Callable[[str], LinearModel]) -> Target:
    """The target that a command line names.

    Raises: InvalidValueError for an unknown policy, or a bandit without a version.
    """
    if version:
        return Target(label=f"model {version}", policy="bandit", model=load(version))
    if policy == LOGGED or (policy in POLICIES and policy != "bandit"):
        return Target(label=policy, policy=policy)
    expected = f"one of {sorted({*POLICIES, LOGGED} - {'bandit'})}, or a model version for the bandit"
    raise InvalidValueError("policy", expected=expected, received=policy)
