"""Every Feast object: one entity, two views with one row per user, one service.

Arrays of one view are aligned with each other; across the two views clusters are matched by id, never by position.
"""

from datetime import timedelta
from pathlib import Path

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Array, Float64, Int64, String

from feature_repo import names

_TTL = timedelta(days=3650)  # no limit in practice: Feast wants one for the first materialize-incremental, and does not enforce it online

_TYPES = {"int64": Int64, "int64[]": Array(Int64), "float64[]": Array(Float64), "string[]": Array(String)}


def _fields(view: str) -> list[Field]:
    described = [Field(name=column.name, dtype=_TYPES[column.type], description=column.meaning) for column in names.VIEWS[view]]
    return [Field(name=names.JOIN_KEY, dtype=String), *described]


def objects(root: Path) -> list[Entity | FeatureView | FeatureService]:
    """All of them, reading Parquet below `root`: Feast resolves relative paths against the working directory, so they are absolute."""
    user = Entity(name=names.ENTITY, join_keys=[names.JOIN_KEY], value_type=ValueType.STRING)

    user_clusters = FeatureView(
        name=names.USER_CLUSTERS,
        description="PinnerSage clusters of a user's engaged items, and the best query items of each (flattened, with offsets)",
        entities=[user],
        ttl=_TTL,
        source=FileSource(
            name="user_clusters_source",
            path=str(root / names.USER_CLUSTERS_PATH / "*.parquet"),
            timestamp_field=names.TIMESTAMP,
        ),
        schema=_fields(names.USER_CLUSTERS),
    )

    cluster_rewards = FeatureView(
        name=names.CLUSTER_REWARDS,
        description="Decayed sums of what each cluster's queries brought, at the reference time of the row",
        entities=[user],
        ttl=_TTL,
        source=FileSource(
            name="cluster_rewards_source",
            path=str(root / names.CLUSTER_REWARDS_PATH / "*.parquet"),
            timestamp_field=names.TIMESTAMP,
        ),
        schema=_fields(names.CLUSTER_REWARDS),
    )

    query_clusters = FeatureService(name=names.SERVICE, features=[user_clusters, cluster_rewards])
    return [user, user_clusters, cluster_rewards, query_clusters]


user, user_clusters, cluster_rewards, query_clusters = objects(Path(__file__).resolve().parent)
