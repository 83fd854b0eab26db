"""The page of an evaluation: verdict, values with intervals, weights, and how soon after an impression engagements arrive."""

from __future__ import annotations

import html
from typing import Any

import altair as alt
import ibis
import ibis.expr.types as ir
import pandas as pd

from bandit.errors import EmptyLogError
from bandit.ope.diagnostics import HISTOGRAM
from bandit.rewards.scheme import IMPRESSION
from bandit.settings.load import Settings
from training.evaluation.page import html_page
from training.evaluation.result import Evaluation
from training.logs.engine import engine, epoch_us
from training.logs.open_logs import open_log

_DELAYS = [("1 min", 1), ("5 min", 5), ("15 min", 15), ("1 h", 60), ("6 h", 360), ("1 day", 1440), ("later", 10**9)]


def page(found: Evaluation, settings: Settings | None) -> str:
    """The page as HTML; `settings` of a deployment whose feedback log shows how rewards mature, None for a foreign log."""
    sections = [
        ("Value by estimator", "Reward per decision; 95 % intervals resampled by user.", _values(found)),
        (
            "Weights",
            f"Draws by target quota / logged quota; effective sample size {_number(found, 'effective_sample_size')}.",
            _weights(found),
        ),
    ]
    delays = maturity(settings) if settings is not None else []
    if delays:
        sections.append(("Reward maturity", "Engagements by the time since their impression.", _maturity(delays)))
    chart = alt.vconcat(*(part.properties(title=alt.Title(heading, subtitle=text)) for heading, text, part in sections), spacing=45)
    reasons = "".join(f"<li>{html.escape(reason)}" for reason in [*found.reasons, *found.notes])
    table = f"<p><b>{html.escape(found.verdict)}</b><ul>{reasons}</ul>" + _table(found)
    title = f"{found.target} against {found.baseline}"
    intro = f"Valued off-policy on {found.decisions:,} logged decisions."
    return html_page(title, intro, table, chart)


def maturity(settings: Settings) -> list[dict[str, Any]]:
    """Engagements by the time since the impression of the same item behind the same query, in bins; empty without a feedback log."""
    try:
        with open_log(settings, "feedback", now=None) as log:
            return _delays(log.read(engine()).distinct(on="event_id"))
    except EmptyLogError:
        return []


def _delays(events: ir.Table) -> list[dict[str, Any]]:
    events = events.mutate(at=epoch_us(events.occurred_at))
    key = ["decision_id", "query_id", "item_id"]
    shown = events.filter(events.action == IMPRESSION).group_by(*key).agg(shown_at=ibis._.at.min())
    after = events.filter(events.action != IMPRESSION).inner_join(shown, key).mutate(minutes=lambda t: (t.at - t.shown_at) / 60e6)
    bins = ibis.cases(*((after.minutes <= limit, place) for place, (_, limit) in enumerate(_DELAYS)), else_=len(_DELAYS) - 1)
    counts = after.group_by(bin=bins).agg(n=ibis._.count()).to_pyarrow().to_pylist()
    held = {row["bin"]: row["n"] for row in counts}
    return [{"delay": name, "engagements": held.get(place, 0)} for place, (name, _) in enumerate(_DELAYS)] if held else []


def _number(found: Evaluation, name: str) -> str:
    return f"{found.diagnostics[name]:,.0f}"


def _table(found: Evaluation) -> str:
    rows = "".join(f"<tr><td>{name}<td>{_digits(value)}" for name, value in {**found.diagnostics, **found.audit}.items())
    return f"<table><tr><th>diagnostic<th>value{rows}</table>"


def _values(found: Evaluation) -> Any:  # noqa: ANN401 -- altair's own chain is untyped
    rows = [
        {"estimator": name, "policy": label, **one}
        for label, values in ((found.target, found.values), (f"{found.baseline} (baseline)", found.baseline_values))
        for name, one in values.items()
    ]
    base = alt.Chart(pd.DataFrame(rows)).encode(y=alt.Y("estimator:N", title=None), yOffset="policy:N", color="policy:N")
    bars = base.mark_rule(strokeWidth=3).encode(x=alt.X("low:Q", title="reward per decision", scale=alt.Scale(zero=False)), x2="high:Q")
    points = base.mark_point(filled=True, size=90, opacity=1.0).encode(x="value:Q", tooltip=["policy", "estimator", "value:Q"])
    return alt.layer(bars, points).properties(width=680, height=40 * len(found.values))


def _weights(found: Evaluation) -> Any:  # noqa: ANN401
    rows = [
        {"weight": f"{2.0**place:.2g}" if place < 0 else f"{2.0**place:g}", "draws": count}
        for place, count in zip(HISTOGRAM.tolist(), found.weights, strict=True)
        if count
    ]
    bars = alt.Chart(pd.DataFrame(rows or [{"weight": "1", "draws": 0}])).mark_bar()
    return bars.encode(x=alt.X("weight:N", sort=None, title="weight, at most"), y="draws:Q").properties(width=680, height=200)


def _maturity(delays: list[dict[str, Any]]) -> Any:  # noqa: ANN401
    bars = alt.Chart(pd.DataFrame(delays)).mark_bar()
    return bars.encode(x=alt.X("delay:N", sort=None, title="since the impression, at most"), y="engagements:Q").properties(
        width=680, height=200
    )


def _digits(value: float) -> str:
    """Four digits, and thousands as people write them."""
    return f"{value:,.0f}" if abs(value) >= 1000.0 else f"{value:.4g}"
