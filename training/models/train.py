"""Train: training rows to a candidate model, recorded in MLflow as a new version."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bandit.errors import CorruptModelError, EmptyLogError, FoldStateError, TooFewRowsError
from bandit.model.learning import Examples, learn
from bandit.model.linear_model import LinearModel, Manifest, sha256
from bandit.rewards.prior import fit_prior
from bandit.settings.load import Settings
from bandit.types import Prior
from feature_repo import names
from training.features.fold_state import SUMS_TABLE, table_file, usable_state
from training.features.snapshots import newest_snapshot
from training.lock import leased
from training.logs.engine import engine
from training.logs.open_logs import read_engine, read_snapshots
from training.logs.tables import read_own
from training.models.join import examples_file
from training.models.registry import ModelRegistry


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A candidate: its version in the registry, and what it was learned from."""

    version: str
    sha256: str
    rows: int
    impressions: float
    mean_reward: float
    residual_rmse: float


def train(settings: Settings, *, as_of: int) -> Trained:
    """Learn a candidate from the joined rows, and register it. A draw that brought no impression says nothing.

    Where a gate is to judge the model, the newest rows are left alone (`training.held_out`): it is judged on what it has not seen.

    Raises: EmptyLogError without a join, TooFewRowsError, LearnerError, ExportMismatchError, LockHeldError, RegistryError,
        DependencyUnavailableError.
    """
    with leased(settings.data_path, "train"):
        registry = ModelRegistry(settings)
        registry.add_kept()
        examples = read_examples(settings)
        if settings.gate.mode == "enforce":
            examples, _ = split(settings, examples)
        model = candidate(settings, examples, as_of=as_of)
        metrics = metrics_of(model, examples)
        known = _newest(registry)
        if known is not None and _learned_from(known[1].manifest) == _learned_from(model.manifest):
            version, model = known
        else:
            version = registry.add(model, metrics)
        return Trained(
            version=version,
            sha256=sha256(model.to_bytes()),
            rows=len(examples),
            impressions=metrics["impressions"],
            mean_reward=metrics["mean_reward"],
            residual_rmse=metrics["residual_rmse"],
        )


def read_examples(settings: Settings) -> Examples:
    """The joined rows that brought impressions, in order of their decisions.

    Raises: EmptyLogError without a join, TooFewRowsError.
    """
    file = examples_file(settings)
    if not file.exists():
        raise EmptyLogError("set of training rows", f"{file}; run `query-rewards join` first")
    table = read_own(file, columns=["features", "impressions", "reward", "decided_at", "mode", "arm"])
    table = table.filter(pc.and_(pc.greater(table["impressions"], 0), _learnable(table, settings)))
    rows, minimum = table.num_rows, settings.training.minimum_rows
    if rows < minimum:
        raise TooFewRowsError(rows, minimum)
    return Examples(
        features=pc.list_flatten(table["features"]).to_numpy().astype(np.float32, copy=False).reshape(rows, -1),
        reward=table["reward"].to_numpy(),
        impressions=table["impressions"].to_numpy().astype(np.float64),
        decided_at=table["decided_at"].cast("int64").to_numpy(),
    )


def hold_out(examples: Examples, share: float) -> tuple[Examples, Examples]:
    """Rows to learn from, and the newest `share` of the rows to judge by; a decision's rows stay together."""
    split = int(np.searchsorted(examples.decided_at, examples.decided_at[int((1.0 - share) * (len(examples) - 1))]))
    return examples.part(0, split), examples.part(split, len(examples))


def split(settings: Settings, examples: Examples) -> tuple[Examples, Examples]:
    """As `hold_out`, when enough rows are left to learn from.

    Raises: TooFewRowsError.
    """
    learned, held_out = hold_out(examples, settings.training.held_out)
    minimum = settings.training.minimum_rows
    if len(learned) < minimum:
        moment = datetime.fromtimestamp(int(held_out.decided_at[0]) / 1e6, UTC)
        moments = "all of one moment, " if held_out.decided_at[0] == held_out.decided_at[-1] else "the first of "
        why = f"the newest {len(held_out)} rows, {moments}{moment:%Y-%m-%d %H:%M:%S} UTC, are held out to judge by (training.held_out)"
        raise TooFewRowsError(len(learned), minimum, why)
    return learned, held_out


def candidate(settings: Settings, examples: Examples, *, as_of: int) -> LinearModel:
    """A model of these rows, with the prior of `as_of`. Raises: LearnerError."""
    return learn(examples, population_prior(settings, as_of=as_of), settings.policy.exploration(), settings.training.learner())


def metrics_of(model: LinearModel, examples: Examples) -> dict[str, float]:
    """What is recorded of a training beside the model."""
    left = examples.residual - model.predict(examples.features)
    return {
        "rows": float(len(examples)),
        "impressions": float(examples.impressions.sum()),
        "mean_reward": float(examples.reward.sum() / examples.impressions.sum()),
        "residual_rmse": float(np.sqrt((left**2).mean())),
    }


def _learnable(table: pa.Table, settings: Settings) -> pa.Array:
    """Mask of the rows that a model may learn from: not what is only logged, and not what an arm without the model brought."""
    mask = pc.not_equal(table["mode"], "log_only")
    if settings.experiment.arms and settings.experiment.learn_from == "bandit":
        other = [name for name, arm in settings.experiment.arms.items() if arm.policy != "bandit"]
        mask = pc.and_(mask, pc.invert(pc.is_in(table["arm"], pa.array(other, pa.string()))))
    return mask


def _newest(registry: ModelRegistry) -> tuple[str, LinearModel] | None:
    """The version registered last, None when there is none that can be read."""
    version = registry.newest()
    try:
        return (version, registry.load(version)) if version is not None else None
    except CorruptModelError:
        return None


def _learned_from(manifest: Manifest) -> tuple[object, ...]:
    """What tells two trainings apart: the prior fades with the clock, so a model of the same rows is the same model."""
    window = manifest.trained_from, manifest.trained_until, manifest.rows
    return manifest.feature_version, window, manifest.learner, manifest.weights_sha256, manifest.prior_strength, manifest.exploration


def population_prior(settings: Settings, *, as_of: int) -> Prior:
    """Global and topic means over all users' newest sums, each decayed from its own reference time to `as_of`.

    Clusters that are no longer in `user_clusters` count towards the global mean only.
    """
    clusters = newest_snapshot(settings.feature_repo_path / names.USER_CLUSTERS_PATH, until=as_of)
    strength = settings.policy.prior_strength
    connection = engine()
    evidence = _latest_evidence(settings, connection, as_of)
    if clusters is None or evidence is None:
        return fit_prior(np.array([], np.int64), np.array([]), np.array([]), strength)
    profiles = read_engine(connection, [clusters]).select("user_id", names.CLUSTER_IDS, names.TOPIC_IDS)
    profiles = profiles.mutate(place=ibis.range(0, profiles[names.CLUSTER_IDS].length())).unnest("place")
    topics = profiles.select(
        "user_id", cluster_id=profiles[names.CLUSTER_IDS][profiles.place], topic=profiles[names.TOPIC_IDS][profiles.place]
    )
    joined = evidence.left_join(topics, ["user_id", "cluster_id"])
    by_topic = joined.group_by("topic").agg(impressions=joined.impressions.sum(), reward=joined.reward.sum()).order_by("topic").to_pyarrow()
    topic = by_topic["topic"].fill_null(_NO_TOPIC).to_numpy()
    return fit_prior(topic, by_topic["reward"].to_numpy(), by_topic["impressions"].to_numpy(), strength)


def _latest_evidence(settings: Settings, connection: ibis.BaseBackend, as_of: int) -> ir.Table | None:
    """Impressions and reward of each user's clusters as of this time: from the last fold's sums, else from all snapshots."""
    long = float(settings.reward.half_lives().long)
    with contextlib.suppress(FoldStateError):
        state = usable_state(settings, as_of=as_of)
        latest, factor = read_engine(connection, [table_file(settings, state, SUMS_TABLE)]), 2.0 ** ((state.as_of - as_of) / long)
        faded = {"impressions": latest[names.IMPRESSIONS_LONG] * factor, "reward": latest[names.REWARD_LONG] * factor}
        return latest.select("user_id", "cluster_id", **faded)
    snapshots = read_snapshots(settings, connection)
    if snapshots is None:
        return None
    sums = snapshots.filter(ibis._[names.AS_OF] <= as_of)
    newest = sums.group_by("user_id").agg(
        **{name: sums[name].argmax(sums[names.AS_OF]) for name in (names.REWARDED_CLUSTERS, names.IMPRESSIONS_LONG, names.REWARD_LONG)},
        age=as_of - sums[names.AS_OF].max(),
    )
    newest = newest.mutate(place=ibis.range(0, newest[names.REWARDED_CLUSTERS].length())).unnest("place")
    factor = ibis.literal(2.0) ** (-newest.age / long)
    return newest.select(
        "user_id",
        cluster_id=newest[names.REWARDED_CLUSTERS][newest.place],
        impressions=newest[names.IMPRESSIONS_LONG][newest.place] * factor,
        reward=newest[names.REWARD_LONG][newest.place] * factor,
    )


_NO_TOPIC = -1
