"""An evaluation: sums over a log, and the verdict with everything that it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bandit.ope.diagnostics import Audit, Diagnostics
from bandit.ope.estimators import ESTIMATORS
from bandit.ope.estimators.state import State
from bandit.ope.gate import Gate, Verdict, judge
from bandit.ope.intervals import percentiles, resample
from bandit.ope.lift import absolute_lift, relative_lift


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialSums:
    """What was summed of a part of a log: states by estimator of the target and of the baseline, their difference, and the checks."""

    target: Mapping[str, State]
    baseline: Mapping[str, State]
    difference: State
    diagnostics: Diagnostics
    audit: Audit

    def __add__(self, other: PartialSums) -> PartialSums:
        """Both parts together."""
        return PartialSums(
            target={name: state + other.target[name] for name, state in self.target.items()},
            baseline={name: state + other.baseline[name] for name, state in self.baseline.items()},
            difference=self.difference + other.difference,
            diagnostics=self.diagnostics + other.diagnostics,
            audit=self.audit + other.audit,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The verdict on a target, and everything that it rests on.

    Values are reward per decision: {estimator: {value, low, high}}, 95 % intervals resampled by user. `lift` is relative to the
    baseline, an interval that holds at every look. `log` says of a foreign log how many rows it has, how many count, and why not all.
    """

    target: str
    baseline: str
    verdict: str
    reasons: list[str]
    notes: list[str]
    decisions: int
    values: dict[str, dict[str, float]]
    baseline_values: dict[str, dict[str, float]]
    lift: dict[str, float]
    diagnostics: dict[str, float]
    audit: dict[str, float]
    weights: list[float] = field(default_factory=list)
    log: dict[str, Any] = field(default_factory=dict)


def evaluation_of(
    total: PartialSums, target: str, baseline: str, gate: Gate, rng: np.random.Generator, notes: Sequence[str], doubts: Sequence[str] = ()
) -> Evaluation:
    """The verdict on what was summed.

    Args:
        total: of the whole log.
        target: what it is called.
        baseline: likewise.
        gate: thresholds.
        rng: of the bootstrap.
        notes: what a reader should know.
        doubts: what keeps anything from being told.
    """
    absolute = absolute_lift(total.difference, gate.alpha)
    reference = "dr" if "dr" in total.baseline else next(iter(total.baseline))
    lift = relative_lift(absolute, ESTIMATORS[reference].estimate(total.baseline[reference]))
    verdict: Verdict = judge(gate, total.diagnostics, total.audit, lift, absolute, doubts)
    found, checked = total.diagnostics, total.audit
    mean = float(total.difference.totals[0]) / max(total.difference.count, 1)
    return Evaluation(
        target=target,
        baseline=baseline,
        verdict=verdict.verdict,
        reasons=list(verdict.reasons),
        notes=list(notes),
        decisions=found.decisions,
        values=_values(total.target, rng),
        baseline_values=_values(total.baseline, rng),
        lift={"absolute": mean, "absolute_low": absolute.low, "absolute_high": absolute.high, "low": lift.low, "high": lift.high},
        diagnostics={
            "draws": found.draws,
            "mean_weight": found.mean_weight,
            "effective_sample_size": found.effective_sample_size,
            "effective_share": found.effective_share,
            "largest_weight": found.largest_weight,
            "unsupported_decision_share": found.unsupported_decision_share,
            "unsupported_weight_share": found.unsupported_weight_share,
            "agreement": found.agreement,
        },
        audit={
            "chi_squared": checked.chi_squared,
            "degrees": checked.degrees,
            "chi_squared_p": checked.chi_squared_p,
            "inverse_ratio": checked.inverse_ratio,
            "inverse_z": checked.inverse_z,
        },
        weights=list(found.histogram),
    )


def _values(states: Mapping[str, State], rng: np.random.Generator) -> dict[str, dict[str, float]]:
    result = {}
    drawn = resample(next(iter(states.values())), rng)
    for name, state in states.items():
        interval = percentiles(ESTIMATORS[name], state, drawn)
        result[name] = {"value": ESTIMATORS[name].estimate(state), "low": interval.low, "high": interval.high}
    return result


def as_dict(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation as JSON takes it: numbers that are not finite become null."""

    def plain(value: Any) -> Any:  # noqa: ANN401 -- any JSON
        if isinstance(value, dict):
            return {key: plain(held) for key, held in value.items()}
        if isinstance(value, list):
            return [plain(held) for held in value]
        return None if isinstance(value, float) and not np.isfinite(value) else value

    content = {name: plain(getattr(evaluation, name)) for name in Evaluation.__dataclass_fields__}
    return content if evaluation.log else {name: value for name, value in content.items() if name != "log"}
