"""Explain: one logged decision, why each of its queries was drawn, and whether recomputing it gives the same bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.dataset as ds

from bandit.errors import CorruptModelError, UnknownDecisionError, UnknownModelError
from bandit.model.featurize import FEATURE_NAMES, FEATURE_VERSION
from bandit.policy.decide import choose
from bandit.policy.logged_inputs import INPUTS, evidence_from_inputs
from bandit.policy.scores import POLICIES, Candidates
from bandit.policy.splitmix import SplitMix64
from bandit.settings.load import Settings
from bandit.types import Floats, Ints, Prior, Rate
from training.logs.open_logs import open_log
from training.logs.schemas import DECISIONS
from training.models.registry import ModelRegistry

SAME, NOT_REPEATABLE = "same bytes", "not repeatable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """A decision: its candidates with features, scores, quotas and draws, its queries with reasons, and how the recomputation went."""

    decision_id: str
    user_id: str
    policy: str
    model_version: str
    k: int
    seed: int
    arm: str
    mode: str
    candidates: list[dict[str, Any]]
    queries: list[dict[str, Any]]
    recomputed: str


def explain(settings: Settings, decision_id: str) -> Explained:
    """Look a decision up in the log and compute it again from its logged features, inputs and seed and from its model.

    Raises: UnknownDecisionError, EmptyLogError, InvalidTableError.
    """
    with open_log(settings, "decisions", now=None) as log:
        rows = ds.dataset(log.files(), schema=DECISIONS).to_table(filter=ds.field("decision_id") == decision_id).to_pylist()
    if not rows:
        raise UnknownDecisionError(decision_id, str(settings.data_path / "decisions"))
    row = rows[0]
    ids, quotas, n = row["cluster_ids"], np.array(row["quotas"]), len(row["cluster_ids"])
    drawn = np.array([sum(query["cluster_id"] == one for query in row["queries"]) for one in ids])
    features = np.array(row["features"], np.float32).reshape(n, -1)
    names = FEATURE_NAMES if row["feature_version"] == FEATURE_VERSION else [f"feature {place}" for place in range(features.shape[1])]
    candidates = [
        {
            "cluster_id": ids[place],
            "score": row["scores"][place],
            "quota": row["quotas"][place],
            "cap": row["caps"][place],
            "drawn": int(drawn[place]),
            "features": dict(zip(names, features[place].tolist(), strict=True)),
        }
        for place in range(n)
    ]
    reasons = [_why(float(quota), int(count)) for quota, count in zip(quotas, drawn, strict=True)]
    queries = [{**query, "why": reasons[ids.index(query["cluster_id"])]} for query in row["queries"]]
    return Explained(
        **{name: row[name] for name in ("decision_id", "user_id", "policy", "model_version", "k", "seed")},
        arm=row["arm"] or "",
        mode=row["mode"] or "online",
        candidates=candidates,
        queries=queries,
        recomputed=_recomputed(settings, row, features, drawn),
    )


def _why(quota: float, drawn: int) -> str:
    whole, rest = int(np.floor(quota)), quota - np.floor(quota)
    if drawn <= whole:
        return f"its quota {quota:.3f} gives {whole} for certain"
    sure = f"{whole} for certain and " if whole else ""
    return f"its quota {quota:.3f} gives {sure}one more with probability {rest:.3f}, which the seed drew"


def _recomputed(settings: Settings, row: dict[str, Any], features: Any, drawn: Ints) -> str:  # noqa: ANN401 -- an array
    if row["policy"] not in POLICIES:
        return f"{NOT_REPEATABLE}: the choice was the caller's own"
    if not row["inputs"] or row["feature_version"] != FEATURE_VERSION:
        return f"{NOT_REPEATABLE}: logged without policy inputs, or for another feature version than {FEATURE_VERSION}"
    try:
        model = ModelRegistry(settings).load(row["model_version"]) if row["model_version"] else None
    except (UnknownModelError, CorruptModelError) as error:
        return f"{NOT_REPEATABLE}: {error}"
    inputs = np.array(row["inputs"]).reshape(-1, len(INPUTS))[:-1]
    columns: dict[str, Floats] = {name: np.ascontiguousarray(inputs[:, place]) for place, name in enumerate(INPUTS)}
    known = Candidates(
        actions=columns["actions"],
        importance=columns["importance"],
        evidence=evidence_from_inputs(columns, columns["actions"]),
        features=features,
        prior=model.prior if model else Prior(rate=Rate(mean=0.0, strength=1.0)),  # no policy without a model looks at it
        model=model,
        exploration=model.manifest.exploration if model else settings.policy.exploration(),
    )
    choice = choose(row["policy"], known, row["k"], np.array(row["caps"]), SplitMix64(row["seed"]))
    for name, again, logged in (
        ("scores", choice.plan.scores, np.array(row["scores"])),
        ("quotas", choice.plan.quotas, np.array(row["quotas"])),
        ("draws", np.array(choice.counts), drawn),
    ):
        if again.tobytes() != logged.astype(again.dtype).tobytes():
            return f"differs in its {name}: was it made by another version of this library?"
    return SAME


def as_text(found: Explained) -> str:
    """The explanation for people."""
    lines = [
        f"decision {found.decision_id} for user {found.user_id}: {found.policy}, model {found.model_version or '-'}, k = {found.k}, "
        f"seed {found.seed}" + (f", arm {found.arm}" if found.arm else "") + f", {found.mode}",
        "",
        f"{'cluster':<24}{'score':>10}{'quota':>9}{'cap':>6}{'drawn':>7}",
    ]
    for one in sorted(found.candidates, key=lambda one: -one["quota"]):
        lines.append(f"{one['cluster_id']:<24}{one['score']:>10.4f}{one['quota']:>9.3f}{one['cap']:>6g}{one['drawn']:>7}")
        lines.append("    " + ", ".join(f"{name} {value:.3f}" for name, value in one["features"].items()))
    lines += ["", *(f"{query['item_id']} of {query['cluster_id']}: {query['why']}" for query in found.queries)]
    return "\n".join([*lines, "", f"recomputed from features, seed and model: {found.recomputed}"])
