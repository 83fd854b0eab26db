"""The composition that one would write first, against `select`: what a row per user saves over a row per cluster, and NumPy over text.

Naive: one Feast row per user and cluster with the features that `select` scores, `get_online_features(...).to_dict()`, Vowpal Wabbit
predicting from text (`--cb_explore_adf --softmax`), and k draws from its probabilities. It logs nothing. The two take turns of a hundred
calls, as a service that makes one of them would; call by call, each in the caches that the other left behind, is in the details.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pandas as pd

with warnings.catch_warnings():
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
    from feast.types import Float64, String

from vowpalwabbit import Workspace

from bandit.model.featurize import FEATURE_NAMES
from benchmarks.result import Result
from benchmarks.timing import interleaved, microseconds
from benchmarks.world import NOW, K, served_world
from serving import QuerySelector

ROUNDS = 1_000
USER, CLUSTERS = "user-50", 50


def naive(folder: Path, redis_url: str) -> Callable[[int], object]:
    server = urlsplit(redis_url)
    address = f"{server.netloc},db={server.path.strip('/')}"
    (folder / "feature_store.yaml").write_text(
        "project: naive\nprovider: local\nregistry: registry.db\nentity_key_serialization_version: 3\n"
        f"offline_store: {{type: duckdb}}\nonline_store: {{type: redis, connection_string: '{address}'}}\n"
    )
    store = FeatureStore(repo_path=str(folder))
    keys = [Entity(name=name, join_keys=[name], value_type=ValueType.STRING) for name in ("user_id", "cluster_id")]
    view = FeatureView(
        name="clusters",
        entities=keys,
        source=FileSource(name="clusters", path=str(folder / "none.parquet"), timestamp_field="at"),
        schema=[Field(name=name, dtype=String) for name in ("user_id", "cluster_id")]
        + [Field(name=name, dtype=Float64) for name in FEATURE_NAMES],
    )
    rng = np.random.default_rng(1)
    ids = [f"item-{number:07d}" for number in range(CLUSTERS)]
    rows = pd.DataFrame({"user_id": USER, "cluster_id": ids, "at": datetime.fromtimestamp(NOW / 1e6, UTC)})
    rows = rows.assign(**{name: rng.random(CLUSTERS) for name in FEATURE_NAMES})
    rows.to_parquet(folder / "none.parquet")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        store.apply([*keys, view])
        store.write_to_online_store("clusters", rows)
    workspace = Workspace("--quiet --cb_explore_adf --softmax --lambda 10 -q cc --random_seed 1")
    names = [f"clusters:{name}" for name in FEATURE_NAMES]
    entities = [{"user_id": USER, "cluster_id": cluster_id} for cluster_id in ids]

    def choose(seed: int) -> object:
        read = store.get_online_features(features=names, entity_rows=entities).to_dict()
        columns = [read[name] for name in FEATURE_NAMES]
        lines = [
            "|c " + " ".join(f"{name}:{column[place]:.6g}" for name, column in zip(FEATURE_NAMES, columns, strict=True))
            for place in range(CLUSTERS)
        ]
        pmf = np.array(workspace.predict("\n".join(lines)))
        return np.random.default_rng(seed).choice(CLUSTERS, K, replace=False, p=pmf / pmf.sum())

    return choose


def main() -> None:
    with (
        served_world({USER: CLUSTERS}) as world,
        tempfile.TemporaryDirectory() as folder,
        QuerySelector.open(world.settings_file) as selector,
    ):
        ways = {"naive": naive(Path(folder), world.redis_url), "select": lambda seed: selector.select(USER, K, now=NOW, seed=seed)}
        seconds = interleaved(ways, rounds=ROUNDS, run=100)
        alternating = interleaved(ways, rounds=ROUNDS)
    detail: dict[str, object] = {name: microseconds(values) for name, values in seconds.items()}
    detail |= {f"{name}_call_by_call": microseconds(values) for name, values in alternating.items()}
    detail |= {"ratio_call_by_call": ratio(alternating)}
    print("naive_vs_select", ratio(seconds), detail)
    Result(name="naive_vs_select", value=ratio(seconds), unit="ratio", better="higher", limit=8.0, detail=detail).write()


def ratio(seconds: dict[str, np.ndarray]) -> float:
    return float(np.median(seconds["naive"]) / np.median(seconds["select"]))


if __name__ == "__main__":
    main()
