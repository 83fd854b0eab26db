"""`make demo`: the story of Recipes and Furniture, then every policy on real data. Writes out/demo/summary.json and report.html."""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import redis
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bandit.errors import DependencyUnavailableError, QueryRewardsError
from examples import recipes, session
from examples.kuairand import workers
from examples.kuairand.estimates import lift, resamples, reward_per_impression
from examples.kuairand.play import POLICIES, QUERIES, Played, make_pools, prepare
from examples.kuairand.replay import requests
from examples.kuairand.report import replay_report
from examples.kuairand.workers import quiet
from training.local_redis import URL_VARIABLE, local_redis

OUT = Path("out/demo")
BASE = "action_count"
SEED = 1
RESAMPLES = 1000
console = Console()


def main() -> None:
    quiet()
    started = time.monotonic()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    with local_redis() as url:
        os.environ.pop(URL_VARIABLE, None)  # it would send every deployment to the same database
        databases = _empty_databases(url, len(POLICIES) + 3)
        try:
            _tell_story(databases[:3])
            played, users = _replay(databases[3:])
        finally:
            for database in databases:
                redis.Redis.from_url(database).flushdb()
    summary = summarise(played, time.monotonic() - started)
    (OUT / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    intro = (
        f"KuaiRand-Pure, main feed: {users:,} users of a short-video app, ten days of what they were really shown. Each policy chose "
        f"{QUERIES} queries a request through the whole loop (Feast, Redis, decision log, fold, daily retraining); each query was shown "
        "the next unused exposure of its cluster, with its real outcome. Reward: long view +1, like +1, hate -1."
    )
    page = replay_report(
        "Query Rewards on KuaiRand",
        intro,
        summary,
        [{"policy": one.policy, **row} for one in played for row in one.curve],
        [{"policy": one.policy, "impressions": count, "clusters": held} for one in played for count, held in one.evidence.items()],
    )
    (OUT / "report.html").write_text(page, encoding="utf-8")
    _show(summary)
    console.print(f"\nReport: {OUT / 'report.html'}   Figures: {OUT / 'summary.json'}   {summary['seconds']:.0f} s in all")


def summarise(played: Sequence[Played], seconds: float) -> dict[str, Any]:
    """Reward per impression of each policy and its lift, with intervals resampled by user, paired across policies."""
    drawn = resamples(len(played[0].reward), RESAMPLES, np.random.default_rng(SEED))
    arrays = {one.policy: (np.array(one.reward), np.array(one.impressions, np.float64)) for one in played}
    policies, lifts = {}, {}
    for one in played:
        reward, impressions = arrays[one.policy]
        mean = reward_per_impression(reward, impressions, drawn)
        policies[one.policy] = {
            "reward_per_impression": mean.value,
            "ci95": [mean.low, mean.high],
            "impressions": int(impressions.sum()),
            "decisions": one.decisions,
        }
        if one.policy != BASE:
            gain = lift(reward, impressions, *arrays[BASE], drawn)
            lifts[one.policy] = {"lift": gain.value, "ci95": [gain.low, gain.high]}
    against = lift(*arrays["bandit"], *arrays["query_reward"], drawn)
    return {
        "policies": policies,
        "lift_over_action_count": lifts,
        "lift_of_bandit_over_query_reward": {"lift": against.value, "ci95": [against.low, against.high]},
        "rows_materialized": sum(one.rows_materialized for one in played),
        "seconds": round(seconds, 1),
    }


def _tell_story(databases: Sequence[str]) -> None:
    console.print("[bold]A large Recipes cluster, a small Furniture cluster.[/] Last week this user saved recipes; now they move house.")
    console.print(f"Expected queries of each request, out of {recipes.QUERIES}, chosen through the whole loop:\n")
    for policy, database in zip(("query_reward", "bandit"), databases, strict=False):
        _heading(policy, "day")
        recipes.play(OUT / "story" / policy, database, policy, show=lambda shown: _tell(shown, "day"))
        console.print()
    _heading("bandit, through the stream: one session", "request")
    session.play(OUT / "story" / "session", databases[-1], show=lambda shown: _tell(shown, "request"))
    console.print()


def _heading(title: str, unit: str) -> None:
    console.print(f"[bold]{title}[/]\n  {unit:<10} recipes          furniture        travel")


def _tell(shown: recipes.Round, unit: str) -> None:
    name = "last week" if shown.number == 0 else f"{unit} {shown.number}"
    bars = "  ".join(f"{shown.quotas[topic]:5.2f} {'█' * round(1.6 * shown.quotas[topic]):<9}" for topic in recipes.TOPICS)
    note = f"model {shown.model_version}" if shown.policy == "bandit" else shown.policy
    console.print(f"  {name:<9} {bars} [dim]{note}[/]", highlight=False, soft_wrap=True)


def _replay(databases: Sequence[str]) -> tuple[list[Played], int]:
    columns = (TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console.print("[bold]Real users: KuaiRand, every policy on the same exposures.[/]")
    with Progress(*columns, console=console) as bars:
        clustering = bars.add_task("clustering users", total=None)
        settings = prepare(OUT / "prepared", lambda done, total: bars.update(clustering, completed=done, total=total))
        pools = make_pools(settings)
        total = len(requests(pools, QUERIES))
        tasks = {policy: bars.add_task(f"playing {policy}", total=total) for policy in POLICIES}
        context = multiprocessing.get_context("spawn")  # a fork would share this process' threads and connections
        messages = context.Queue()
        with ProcessPoolExecutor(os.cpu_count(), mp_context=context, initializer=workers.start, initargs=(pools, messages)) as pool:
            longest_first = sorted(POLICIES, key=lambda policy: policy != "bandit")
            pending = [
                pool.submit(workers.play, policy, OUT / policy, settings.feature_repo_path, database, SEED)
                for policy, database in zip(longest_first, databases, strict=True)
            ]
            while not all(done.done() for done in pending):
                try:
                    policy, step = messages.get(timeout=0.2)
                    bars.advance(tasks[policy], step)
                except queue.Empty:
                    continue
            played = {done.result().policy: done.result() for done in pending}
    return [played[policy] for policy in POLICIES], len(pools)


def _empty_databases(url: str, count: int) -> list[str]:
    """URLs of databases that nobody uses: the demo fills them, and empties them afterwards."""
    base = url.rsplit("/", 1)[0] if url.count("/") > 2 else url
    found = [f"{base}/{number}" for number in range(16) if not redis.Redis.from_url(f"{base}/{number}").dbsize()]
    if len(found) < count:
        raise DependencyUnavailableError("Redis", "the given URL", f"{count} empty databases are needed, {len(found)} found")
    return found[:count]


def _show(summary: dict[str, Any]) -> None:
    table = Table(title="Reward per impression of real outcomes, and lift over action_count")
    for heading in ("policy", "reward", "interval", "lift", "interval"):
        table.add_column(heading, justify="left" if heading == "policy" else "right")
    for policy, row in summary["policies"].items():
        gain = summary["lift_over_action_count"].get(policy)
        lifts = (f"{gain['lift']:+.2%}", f"{gain['ci95'][0]:+.2%} … {gain['ci95'][1]:+.2%}") if gain else ("", "")
        interval = f"{row['ci95'][0]:.4f} … {row['ci95'][1]:.4f}"
        table.add_row(policy, f"{row['reward_per_impression']:.4f}", interval, *lifts)
    console.print(table)
    against = summary["lift_of_bandit_over_query_reward"]
    console.print(f"bandit over query_reward: {against['lift']:+.2%} ({against['ci95'][0]:+.2%} to {against['ci95'][1]:+.2%})")


if __name__ == "__main__":
    try:
        main()
    except QueryRewardsError as error:
        sys.exit(f"demo: {error}")
