"""Names that both sides of the loop must agree on: Feast's views and features, fields in Redis. Plain data only."""

from typing import NamedTuple

PROJECT = "query_rewards"
ENTITY = "user"
JOIN_KEY = "user_id"
TIMESTAMP = "event_timestamp"
SERVICE = "query_clusters"

USER_CLUSTERS = "user_clusters"
CLUSTER_IDS = "cluster_ids"
TOPIC_IDS = "topic_ids"
TOPIC_HISTORY = "topic_history"
ITEM_COUNTS = "item_counts"
ACTION_TYPES = "action_types"
ACTION_COUNTS = "action_counts"
IMPORTANCE = "importance"
LAST_ACTION_AT = "last_action_at"
QUERY_ITEMS = "query_items"
QUERY_WEIGHTS = "query_weights"
QUERY_OFFSETS = "query_offsets"
CLUSTERS_GENERATION = "clusters_generation"

CLUSTER_REWARDS = "cluster_rewards"
AS_OF = "as_of"
REWARDED_CLUSTERS = "rewarded_clusters"  # not `cluster_ids`: a feature service wants different names in different views
IMPRESSIONS_SESSION = "impressions_session"
REWARD_SESSION = "reward_session"
IMPRESSIONS_LONG = "impressions_long"
REWARD_LONG = "reward_long"
DRAWS_SESSION = "draws_session"
SUMS = (IMPRESSIONS_SESSION, REWARD_SESSION, IMPRESSIONS_LONG, REWARD_LONG, DRAWS_SESSION)

REWARDS_GENERATION = "rewards_generation"


class Column(NamedTuple):
    """A feature: its name, its type (`string`, `int64` or `float64`, a list with `[]`), and what it says."""

    name: str
    type: str
    meaning: str


# The one list of features: Feast's fields, the schemas of the Parquet files, what serving reads and what the stream writes derive from it.
VIEWS = {
    USER_CLUSTERS: (
        Column(CLUSTER_IDS, "string[]", "the user's clusters; one element each in every list without another meaning"),
        Column(TOPIC_IDS, "int64[]", "topic of each cluster"),
        Column(TOPIC_HISTORY, "float64[]", "reward per impression of the topic before Query Rewards began, against the user's average"),
        Column(ITEM_COUNTS, "int64[]", "different engaged items"),
        Column(ACTION_TYPES, "string[]", "action types that are counted"),
        Column(ACTION_COUNTS, "float64[]", "actions, (clusters x action types), row by row"),
        Column(IMPORTANCE, "float64[]", "actions, weighted by their recency"),
        Column(LAST_ACTION_AT, "int64[]", "time of the last action, UTC microseconds"),
        Column(QUERY_ITEMS, "string[]", "query items of all clusters, one cluster after the other"),
        Column(QUERY_WEIGHTS, "float64[]", "weight of each query item"),
        Column(QUERY_OFFSETS, "int64[]", "where the query items of each cluster begin, and where the last ones end"),
        Column(CLUSTERS_GENERATION, "int64", "generation of the snapshot that the row comes from; it only grows"),
    ),
    CLUSTER_REWARDS: (
        Column(AS_OF, "int64", "reference time of the sums, UTC microseconds: the row's own timestamp to the last digit"),
        Column(REWARDED_CLUSTERS, "string[]", "clusters with sums; one element each in every list"),
        Column(IMPRESSIONS_SESSION, "float64[]", "decayed impressions, session half-life"),
        Column(REWARD_SESSION, "float64[]", "decayed reward, session half-life"),
        Column(IMPRESSIONS_LONG, "float64[]", "decayed impressions, long half-life"),
        Column(REWARD_LONG, "float64[]", "decayed reward, long half-life"),
        Column(DRAWS_SESSION, "float64[]", "decayed queries drawn, session half-life"),
        Column(REWARDS_GENERATION, "int64", "generation of the snapshot that the row comes from; 0 in rows that the stream writes"),
    ),
}


def columns(view: str) -> list[str]:
    """Names of a view's features, in order."""
    return [column.name for column in VIEWS[view]]


def served(view: str) -> list[Column]:
    """Those features that a selection reads: all but the generation."""
    return [column for column in VIEWS[view] if column.name not in {CLUSTERS_GENERATION, REWARDS_GENERATION}]


# Parquet snapshots that Feast reads: folders, relative to the folder of feature_store.yaml.
USER_CLUSTERS_PATH = "data/user_clusters"
CLUSTER_REWARDS_PATH = "data/cluster_rewards"

RECORD_FIELD = "r"  # of a stream's entry: a Decision or a Feedback
LINEAGE_FIELD = "l"  # of an entry of the feedback stream: a Reclustering
ROW_VERSION_FIELD = "_qr:version"  # of a user's row in the online store: which commit wrote it
