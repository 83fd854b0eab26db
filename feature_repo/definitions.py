"""Every Feast object: one entity, two views with one row per user, one service.

Arrays of one view are aligned with each other; across the two views clusters are matched by id, never by position.
"""

from datetime import timedelta
from pathlib import Path

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Array, Float64, Int64, String

from feature_repo import names

_TTL = timedelta(days=3650)  # no limit in practice: Feast wants one for the first materialize-incremental, and does not enforce it online


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
            path=str(root / names.USER_CLUSTERS_PATH),
            timestamp_field=names.TIMESTAMP,
        ),
        schema=[
            Field(name=names.JOIN_KEY, dtype=String),
            Field(name=names.CLUSTER_IDS, dtype=Array(String)),
            Field(name=names.TOPIC_IDS, dtype=Array(Int64)),
            Field(name=names.TOPIC_HISTORY, dtype=Array(Float64)),  # reward per impression, against the user's average
            Field(name=names.ITEM_COUNTS, dtype=Array(Int64)),  # different engaged items
            Field(name=names.ACTION_TYPES, dtype=Array(String)),
            Field(name=names.ACTION_COUNTS, dtype=Array(Float64)),  # (clusters x action types), row by row
            Field(name=names.IMPORTANCE, dtype=Array(Float64)),
            Field(name=names.LAST_ACTION_AT, dtype=Array(Int64)),  # UTC microseconds
            Field(name=names.QUERY_ITEMS, dtype=Array(String)),
            Field(name=names.QUERY_WEIGHTS, dtype=Array(Float64)),
            Field(name=names.QUERY_OFFSETS, dtype=Array(Int64)),
        ],
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
        schema=[
            Field(name=names.JOIN_KEY, dtype=String),
            Field(name=names.AS_OF, dtype=Int64),  # UTC microseconds, the row's own timestamp to the last digit
            Field(name=names.CLUSTER_IDS, dtype=Array(String)),
            Field(name=names.IMPRESSIONS_SESSION, dtype=Array(Float64)),
            Field(name=names.REWARD_SESSION, dtype=Array(Float64)),
            Field(name=names.IMPRESSIONS_LONG, dtype=Array(Float64)),
            Field(name=names.REWARD_LONG, dtype=Array(Float64)),
            Field(name=names.DRAWS_SESSION, dtype=Array(Float64)),
            Field(name=names.ACTION_TYPES, dtype=Array(String)),
            Field(name=names.ACTION_SUMS, dtype=Array(Float64)),  # (clusters x action types), row by row, long half-life
            Field(name=names.LAST_IMPRESSION_AT, dtype=Array(Int64)),  # UTC microseconds, 0 for never
        ],
    )

    query_clusters = FeatureService(name=names.SERVICE, features=[user_clusters, cluster_rewards])
    return [user, user_clusters, cluster_rewards, query_clusters]


user, user_clusters, cluster_rewards, query_clusters = objects(Path(__file__).resolve().parent)
