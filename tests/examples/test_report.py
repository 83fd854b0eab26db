"""The report is one page that loads nothing."""

from __future__ import annotations

import re

from examples.kuairand.report import replay_report

SUMMARY = {
    "policies": {
        "action_count": {"reward_per_impression": 0.3979, "ci95": [0.39, 0.41], "impressions": 35526, "decisions": 20448},
        "bandit": {"reward_per_impression": 0.4078, "ci95": [0.40, 0.42], "impressions": 35527, "decisions": 20448},
    },
    "lift_over_action_count": {"bandit": {"lift": 0.0248, "ci95": [0.0135, 0.0363]}},
}
ROUNDS = [{"policy": "bandit", "round": 1, "impressions": 10, "reward_per_impression": 0.4, "cold_share": 0.9}]
EVIDENCE = [{"policy": "bandit", "impressions": "0", "clusters": 7}]


def test_the_page_holds_every_figure_and_loads_nothing() -> None:
    page = replay_report("A <title>", "What & how", SUMMARY, ROUNDS, EVIDENCE)
    for figure in ("0.3979", "0.4078", "+2.48%", "+1.35% to +3.63%", "35,527", "A &lt;title&gt;", "What &amp; how"):
        assert figure in page
    assert not re.search(r"""(src|href)\s*=\s*["']?https?:""", page)
    assert page.startswith("<!doctype html>")
    assert page.endswith("</html>\n")
    assert len(page) < 1_500_000
