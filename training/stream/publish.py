"""Handing reclusterings to the stream: each in the partition of its user, in its place among the events."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from bandit.rewards.lineage import Reclustering
from bandit.settings.load import Settings
from feature_repo import names
from feature_repo.connection import connect, translated
from feature_repo.keys import Keys

_CHANGES_PER_CALL = 1000


def publish(settings: Settings, changes: Sequence[Reclustering]) -> None:
    """Append what changed to the feedback streams; the same change twice counts once.

    Raises: DependencyUnavailableError; some may have been appended, and all may be appended again.
    """
    client, keys = connect(settings.redis_url), Keys.of(settings.feature_repo_path)
    with translated(settings.redis_url):
        for start in range(0, len(changes), _CHANGES_PER_CALL):
            pipeline = client.pipeline(transaction=False)
            for change in changes[start : start + _CHANGES_PER_CALL]:
                pipeline.xadd(keys.of_user(change.user_id).feedback, {names.LINEAGE_FIELD: msgspec.msgpack.encode(change)})
            pipeline.execute()
