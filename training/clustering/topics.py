"""Topics: what all users share. One k-means over the items, and what each topic earned before Query Rewards began."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.cluster.vq import kmeans2, vq

from bandit.errors import InvalidTableError
from bandit.rewards.scheme import IMPRESSION, RewardScheme
from bandit.settings.sections import ClusteringSettings
from bandit.types import Floats, Floats32, Ints
from training.logs.writing import whole_file

_SAMPLE = 50_000  # items that the centroids are fitted on
_STEPS = 20
_USER_STRENGTH = 8.0  # impressions that a user's mean is shrunk by
_TOPIC_STRENGTH = 50.0  # impressions that a topic's history is shrunk by


def item_topics(vectors: Floats32, file: Path, settings: ClusteringSettings) -> Ints:
    """Topic of each item: the nearest of the centroids in `file`, which one k-means makes when there is none. Shape (items,).

    The centroids are kept, so that topic numbers mean the same tomorrow: the model's topic means depend on it.

    Raises: InvalidTableError when the kept centroids belong to embeddings of another dimension.
    """
    if file.exists():
        try:
            centroids = np.load(file, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise InvalidTableError(str(file), f"not the topics' centroids: {error}; delete it to refit") from error
        if centroids.shape[1] != vectors.shape[1]:
            raise InvalidTableError(
                str(file), f"{centroids.shape[1]} dimensions, the embeddings have {vectors.shape[1]}; delete it to refit"
            )
    else:
        rng = np.random.default_rng(settings.seed)
        known = vectors[np.abs(vectors).sum(axis=1) > 0.0]
        sample = known[rng.permutation(len(known))[:_SAMPLE]].astype(np.float64)
        count = min(settings.topics, len(np.unique(sample, axis=0)))
        centroids, _ = kmeans2(sample, count, iter=_STEPS, minit="++", rng=rng)
        with whole_file(file) as partial, partial.open("wb") as target:
            np.save(target, centroids, allow_pickle=False)
    return np.asarray(vq(vectors.astype(np.float64), centroids)[0], np.int64)


def topic_history(history: pa.Table, item_ids: pa.Array, topics: Ints, scheme: RewardScheme) -> Floats:
    """How much better than their user's average the history's impressions of each item's topic were rewarded. Shape of `topics`.

    Users are centred first, because users of one topic differ from users of another. Zero for a topic without impressions;
    all zero when the history names no impressions.

    Args:
        history: engagements, `impression` among the actions.
        item_ids: items in the order of `topics`.
        topics: topic of each item.
        scheme: what each action is worth.

    Unit: reward per impression.
    """
    result = np.zeros(len(topics))
    impressions = pc.equal(history["action"], IMPRESSION)
    if not pc.any(impressions).as_py():
        return result
    weights = pa.array([scheme.weights.get(action, 0.0) for action in scheme.action_types])
    code = pc.index_in(history["action"], pa.array(scheme.action_types))
    rows = pa.table(
        {
            "user": history["user_id"],
            "item": pc.index_in(history["item_id"], item_ids),
            "worth": weights.take(code),
            "shown": impressions,
        }
    ).drop_null()
    shown = rows.group_by(["user", "item"]).aggregate([("worth", "sum"), ("shown", "max")]).filter(pc.field("shown_max"))
    if not shown.num_rows:
        return result
    reward = np.clip(shown["worth_sum"].to_numpy(), scheme.minimum, scheme.maximum)
    user = shown["user"].combine_chunks().dictionary_encode().indices.to_numpy()
    total, seen = np.bincount(user, reward), np.bincount(user)
    centred = reward - ((total + _USER_STRENGTH * reward.mean()) / (seen + _USER_STRENGTH))[user]
    codes = np.unique(topics, return_inverse=True)[1]
    topic = codes[shown["item"].to_numpy()]
    earned = np.bincount(topic, centred, codes.max() + 1) / (np.bincount(topic, minlength=codes.max() + 1) + _TOPIC_STRENGTH)
    return np.asarray(earned[codes], np.float64)
