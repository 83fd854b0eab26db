"""Experiment: what each arm earned, with intervals that hold at every look, and whether the split came out as it should."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bandit.errors import EmptyLogError, InvalidSettingError
from bandit.ope.estimators.state import State, state_of
from bandit.ope.intervals import Interval
from bandit.ope.lift import absolute_lift
from bandit.ope.sample_ratio import sample_ratio_p
from bandit.settings.load import Settings
from bandit.types import Floats
from training.logs.tables import read_own
from training.models.outcomes import outcomes_file

_MISMATCH = 1e-3  # chance of the split below which its cause is to be found before anything is read from it


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Arms by name, the split, and warnings that come before any number."""

    arms: dict[str, dict[str, Any]]
    sample_ratio_p: float
    warnings: list[str]


def report(settings: Settings) -> Report:
    """Reward per request and per impression of each arm.

    Both intervals are confidence sequences over users, who are independent; the mean over users of reward per request is what is held,
    and the mean over users of reward minus the arm's rate times impressions, turned back into a rate.

    Raises: InvalidSettingError without arms, EmptyLogError.
    """
    shares = settings.experiment.shares()
    if not shares:
        raise InvalidSettingError("settings", "experiment.arms", "there is no experiment: name its arms and their shares")
    file = outcomes_file(settings)
    if not file.exists():
        raise EmptyLogError("log of outcomes", f"{file}; run `query-rewards join` first")
    table = read_own(file, columns=["user_id", "arm", "shown", "rewards"])
    users = by_user(table)
    arms = {name: _arm(users.filter(pc.equal(users["arm"], name)), settings.gate.alpha) for name in shares}
    counts = [arm["users"] for arm in arms.values()]
    p = sample_ratio_p(counts, list(shares.values()))
    warnings = []
    if p < _MISMATCH:
        warnings.append(f"sample ratio mismatch: {dict(zip(shares, counts, strict=True))} users, p = {p:.2g}; find its cause first")
    if settings.experiment.learn_from == "all":
        warnings.append("experiment.learn_from is 'all': the model learns from arms that do not serve it, so that arms are not independent")
    warnings += [f"arm {name!r} has no decisions yet" for name, arm in arms.items() if not arm["users"]]
    return Report(arms=arms, sample_ratio_p=p, warnings=warnings)


def by_user(table: pa.Table) -> pa.Table:
    """One row per arm and user: requests, impressions, reward."""
    sums = {name: _row_sums(table[name].combine_chunks()) for name in ("shown", "rewards")}
    rows = pa.table({"arm": table["arm"], "user_id": table["user_id"], "shown": sums["shown"], "reward": sums["rewards"]})
    return rows.group_by(["arm", "user_id"]).aggregate([("shown", "sum"), ("reward", "sum"), ("reward", "count")])


def _row_sums(lists: pa.Array) -> Floats:
    row = np.repeat(np.arange(len(lists)), lists.value_lengths().to_numpy())
    return np.bincount(row, lists.flatten().to_numpy().astype(np.float64), len(lists)).astype(np.float64)


def _arm(users: pa.Table, alpha: float) -> dict[str, Any]:
    reward, shown = users["reward_sum"].to_numpy(), users["shown_sum"].to_numpy()
    requests = users["reward_count"].to_numpy().astype(np.float64)
    return {
        "users": users.num_rows,
        "requests": int(requests.sum()),
        "impressions": int(shown.sum()),
        "reward_per_request": _ratio(reward, requests, alpha),
        "reward_per_impression": _ratio(reward, shown, alpha),
    }


def _ratio(reward: Floats, units: Floats, alpha: float) -> dict[str, float | None]:
    """Reward by units, and a sequence of the mean residual of users turned into one of the rate."""
    total = float(units.sum())
    if not total:
        return {"value": None, "low": None, "high": None}
    rate = float(reward.sum()) / total
    residual: State = state_of((reward - rate * units)[:, None], np.zeros(len(reward), np.int64))
    around: Interval = absolute_lift(residual, alpha)
    per_user = total / len(reward)
    return {"value": rate, "low": rate + around.low / per_user, "high": rate + around.high / per_user}
