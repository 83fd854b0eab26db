"""Join: decisions with the feedback that came within the attribution window, one training row per drawn cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import ibis
import ibis.expr.types as ir

from bandit.model.featurize import FEATURE_NAMES, FEATURE_VERSION
from bandit.rewards.scheme import IMPRESSION
from bandit.settings.load import Settings
from bandit.types import MICROSECONDS_PER_DAY
from training.logs.engine import deduplicated, engine, epoch_us
from training.logs.files import arrived_since
from training.logs.open_logs import Log, open_log, put_aside
from training.logs.schemas import FEEDBACK
from training.logs.tables import write_table
from training.models.outcomes import outcomes_file, write_outcomes

EXAMPLES_FILE = "examples.parquet"
DEAD_LETTERS_FILE = "dead_letters/feedback.parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """What a join did. `waiting`: decisions whose window is still open; `dead_letters`: events that belong to no decision."""

    decisions: int
    waiting: int
    rows: int
    impressions: int
    dead_letters: int
    rejected: Mapping[str, int]
    quarantined: Mapping[str, str]
    file: str


def join(settings: Settings, *, as_of: int) -> Joined:
    """Write the training rows of every decision whose window closed by `as_of`, and the feedback that matches no decision.

    Both files are made from the logs of the training window, of which no older day folder is read; repeating a join changes nothing.

    Raises: EmptyLogError when there are no decisions or no feedback yet, InvalidTableError.
    """
    days, data = settings.training.window_days, settings.data_path
    first = as_of - round(days * MICROSECONDS_PER_DAY) - settings.reward.attribution_window
    with (
        open_log(settings, "decisions", now=None, only=arrived_since(data / "decisions", first)) as decision_log,
        open_log(settings, "feedback", now=None, only=arrived_since(data / "feedback", first)) as feedback_log,
    ):
        return _join(settings, decision_log, feedback_log, as_of=as_of)


def _join(settings: Settings, decision_log: Log, feedback_log: Log, *, as_of: int) -> Joined:
    connection = engine()
    decisions, feedback = decision_log.read(connection), feedback_log.read(connection)
    since = as_of - round(settings.training.window_days * MICROSECONDS_PER_DAY)
    decisions = decisions.distinct(on="decision_id").mutate(decided=epoch_us(ibis._.decided_at))
    window = settings.reward.attribution_window  # feedback of the training window may belong to a decision from before it
    decisions = connection.create_table("decisions", decisions.filter((decisions.decided > since - window) & (decisions.decided <= as_of)))
    unique = deduplicated(feedback)
    unique = unique.mutate(at=epoch_us(unique.occurred_at)).filter(lambda t: (t.at > since) & (t.at <= as_of))
    feedback = connection.create_table("feedback", unique)
    draws = connection.create_table("draws", drawn_queries(decisions))
    judged = connection.create_table("judged", judge(feedback, decisions, draws, window=window))
    decisions = decisions.filter(decisions.decided > since)
    matured = decisions.filter(decisions.decided + window <= as_of)
    rows = examples(matured, draws, judged.filter(judged.reason == ""), settings)
    table = rows.order_by("decided_at", "decision_id", "cluster_id").to_pyarrow()
    dead = judged.filter(judged.reason != "").select([*FEEDBACK.names, "reason"]).order_by("event_id").to_pyarrow()
    file = settings.data_path / EXAMPLES_FILE
    write_table(table, file)
    write_outcomes(matured, rows, outcomes_file(settings))
    write_table(dead, settings.data_path / DEAD_LETTERS_FILE)
    decided, closed = decisions.count().to_pyarrow().as_py(), matured.count().to_pyarrow().as_py()
    return Joined(
        decisions=closed,
        waiting=decided - closed,
        rows=table.num_rows,
        impressions=sum(table["impressions"].to_pylist()),
        dead_letters=dead.num_rows,
        **put_aside(decision_log, feedback_log),
        file=str(file),
    )


def drawn_queries(decisions: ir.Table) -> ir.Table:
    """One row per drawn query: decision_id, user_id, cluster_id, query_id."""
    rows = decisions.select("decision_id", "user_id", query=decisions.queries.unnest())
    return rows.select("decision_id", "user_id", cluster_id=rows.query.cluster_id, query_id=rows.query.item_id)


def judge(feedback: ir.Table, decisions: ir.Table, draws: ir.Table, *, window: int) -> ir.Table:
    """Each event with the `reason` why it belongs to no decision, empty when it does."""
    made = decisions.select(made_as="decision_id", made_for="user_id", decided="decided")
    queried = draws.select(drawn_by="decision_id", drawn_cluster="cluster_id", drawn_query="query_id").distinct()
    known = feedback.left_join(made, feedback.decision_id == made.made_as)
    known = known.left_join(queried, [("decision_id", "drawn_by"), ("cluster_id", "drawn_cluster"), ("query_id", "drawn_query")])
    reason = ibis.cases(
        (known.made_as.isnull(), "no such decision"),
        (known.made_for != known.user_id, "the decision was another user's"),
        (known.drawn_query.isnull(), "the decision did not draw this query from this cluster"),
        (known.at < known.decided, "before the decision"),
        (known.at > known.decided + window, "after the attribution window"),
        else_="",
    )
    return known.mutate(reason=reason).select([*FEEDBACK.names, "at", "reason"])


def examples(matured: ir.Table, draws: ir.Table, events: ir.Table, settings: Settings) -> ir.Table:
    """Training rows: one per (decision, drawn cluster), with its features, draws, impressions and reward."""
    scheme = settings.reward.scheme()
    actions = events.select("decision_id", "cluster_id", "query_id", "item_id", "action").distinct()
    weight = ibis.cases(*((actions.action == action, float(w)) for action, w in scheme.weights.items()), else_=0.0)
    weighed = actions.mutate(weight=weight)
    shown = weighed.group_by("decision_id", "cluster_id", "query_id", "item_id").agg(
        reward=weighed.weight.sum().clip(scheme.minimum, scheme.maximum), seen=(weighed.action == IMPRESSION).any()
    )
    outcomes = shown.filter(shown.seen).group_by("decision_id", "cluster_id").agg(impressions=ibis._.count(), reward=ibis._.reward.sum())
    drawn = draws.group_by("decision_id", "cluster_id").agg(draws=ibis._.count())
    d = len(FEATURE_NAMES)
    wide = (
        drawn.inner_join(matured, "decision_id")
        .left_join(outcomes, ["decision_id", "cluster_id"])
        .mutate(place=ibis._.cluster_ids.index(ibis._.cluster_id))
    )
    return wide.select(
        "decision_id",
        "user_id",
        "cluster_id",
        "decided_at",
        "policy",
        "model_version",
        "feature_version",
        "arm",
        "mode",
        "draws",
        quota=wide.quotas[wide.place],
        features=wide.features[wide.place * d : (wide.place + 1) * d],
        impressions=wide.impressions.fill_null(0),
        reward=wide.reward.fill_null(0.0),
    ).filter(lambda t: t.feature_version == FEATURE_VERSION)


def examples_file(settings: Settings) -> Path:
    """Where the training rows are."""
    return settings.data_path / EXAMPLES_FILE
