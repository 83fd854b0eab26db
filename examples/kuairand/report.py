"""The report of a replay: one self-contained page with plots of aggregated data."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from training.evaluation.page import html_page


def replay_report(
    title: str, intro: str, summary: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]], evidence: Sequence[Mapping[str, Any]]
) -> str:
    """The page as HTML.

    Args:
        title: of the page.
        intro: what was played, in a few sentences.
        summary: `policies` and `lift_over_action_count`, as in summary.json.
        rounds: one row per policy and round: policy, round, impressions, reward_per_impression, cold_share.
        evidence: one row per policy and number of impressions of a cluster: policy, impressions, clusters.
    """
    sections = [
        ("Lift over action counts", "95 % intervals, resampled by user. A line that crosses 0 says nothing either way.", _lifts(summary)),
        (
            "Learning",
            "Reward per impression of everything played so far.",
            _curve(rounds, "reward_per_impression", "reward per impression"),
        ),
        ("Cold clusters", "Share of clusters that no query was drawn from yet.", _curve(rounds, "cold_share", "share of clusters")),
        ("How evidence spreads", "Clusters by the impressions that they have at the end.", _evidence(evidence)),
    ]
    chart = alt.vconcat(*(part.properties(title=alt.Title(heading, subtitle=text)) for heading, text, part in sections), spacing=45)
    return html_page(title, intro, _table(summary), chart.resolve_scale(color="shared"))


def _table(summary: Mapping[str, Any]) -> str:
    head = "<tr><th>policy<th>reward per impression<th>95 % interval<th>lift over action_count<th>95 % interval<th>impressions<th>decisions"
    rows = []
    for policy, row in summary["policies"].items():
        lift = summary["lift_over_action_count"].get(policy)
        gain = f"<td>{lift['lift']:+.2%}<td>{lift['ci95'][0]:+.2%} to {lift['ci95'][1]:+.2%}" if lift else "<td><td>"
        low, high = row["ci95"]
        rows.append(
            f"<tr><td>{html.escape(policy)}<td>{row['reward_per_impression']:.4f}<td>{low:.4f} to {high:.4f}{gain}"
            f"<td>{row['impressions']:,}<td>{row['decisions']:,}"
        )
    return f"<table>{head}{''.join(rows)}</table>"


def _lifts(summary: Mapping[str, Any]) -> Any:  # noqa: ANN401 -- altair's own chain is untyped
    rows = [
        {"policy": policy, "lift": row["lift"], "low": row["ci95"][0], "high": row["ci95"][1]}
        for policy, row in summary["lift_over_action_count"].items()
    ]
    base = alt.Chart(pd.DataFrame(rows)).encode(y=alt.Y("policy:N", sort="-x", title=None), color=alt.Color("policy:N", title="policy"))
    bars = base.mark_rule(strokeWidth=3).encode(x=alt.X("low:Q", title="lift", axis=alt.Axis(format="+.1%")), x2="high:Q")
    points = base.mark_point(filled=True, size=110, opacity=1.0).encode(
        x="lift:Q", tooltip=["policy", alt.Tooltip("lift:Q", format="+.2%")]
    )
    zero = alt.Chart(pd.DataFrame({"x": [0.0]})).mark_rule(strokeDash=[4, 4], color="#888").encode(x="x:Q")
    return alt.layer(zero, bars, points).properties(width=680, height=150)


def _curve(rounds: Sequence[Mapping[str, Any]], column: str, label: str) -> Any:  # noqa: ANN401 -- altair's own chain is untyped
    return (
        alt.Chart(pd.DataFrame(list(rounds)))
        .mark_line(point=True)
        .encode(
            x=alt.X("impressions:Q", title="impressions played"),
            y=alt.Y(f"{column}:Q", title=label, scale=alt.Scale(zero=False)),
            color=alt.Color("policy:N", title="policy"),
            tooltip=["policy", "round", alt.Tooltip(f"{column}:Q", format=".4f")],
        )
        .properties(width=680, height=260)
    )


def _evidence(evidence: Sequence[Mapping[str, Any]]) -> Any:  # noqa: ANN401 -- altair's own chain is untyped
    return (
        alt.Chart(pd.DataFrame(list(evidence)))
        .mark_bar()
        .encode(
            x=alt.X("impressions:N", title="impressions of a cluster"),
            xOffset="policy:N",
            y=alt.Y("clusters:Q", title="clusters"),
            color=alt.Color("policy:N", title="policy"),
            tooltip=["policy", "impressions", "clusters"],
        )
        .properties(width=680, height=220)
    )
