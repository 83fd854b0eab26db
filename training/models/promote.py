"""Promote: the champion's bytes to Redis, where serving takes them over within a second; and back again."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from bandit.errors import NoModelError
from bandit.model.linear_model import LinearModel, sha256
from bandit.settings.load import Settings
from feature_repo import names
from feature_repo.connection import connect, translated
from training.models.registry import ModelRegistry

_SUPERSEDED_SECONDS = 24 * 3600  # a model that no longer serves leaves Redis after a day; the registry keeps it


@dataclass(frozen=True, slots=True, kw_only=True)
class Promoted:
    """The version that serves now, and the one that served before (empty for none)."""

    version: str
    sha256: str
    before: str


def promote(settings: Settings, *, version: str | None = None) -> Promoted:
    """Make a version, the newest if None, the champion. Promoting the champion again repeats the hand-over, which changes nothing.

    Raises: NoModelError, UnknownModelError, CorruptModelError, DependencyUnavailableError; then the old model goes on serving.
    """
    registry = ModelRegistry(settings)
    chosen = version or registry.newest()
    if chosen is None:
        raise NoModelError
    before = registry.champion()
    model = registry.load(chosen)
    _hand_over(settings, chosen, model)
    registry.set_champion(chosen)
    return Promoted(version=chosen, sha256=sha256(model.to_bytes()), before=before or "")


def rollback(settings: Settings) -> Promoted:
    """Make the champion before this one serve again.

    Raises: NoEarlierChampionError, CorruptModelError, DependencyUnavailableError.
    """
    registry = ModelRegistry(settings)
    left = registry.champion()
    chosen = registry.before_champion()
    model = registry.load(chosen)
    _hand_over(settings, chosen, model)
    registry.go_back(chosen)
    return Promoted(version=chosen, sha256=sha256(model.to_bytes()), before=left or "")


def _hand_over(settings: Settings, version: str, model: LinearModel) -> None:
    client = connect(settings.redis_url)
    data = model.to_bytes()
    digest = sha256(data)
    with translated(settings.redis_url):
        served = client.get(names.CHAMPION_KEY)
        pipeline = client.pipeline(transaction=True)
        pipeline.set(names.MODEL_KEY % digest, data)
        pipeline.set(names.CHAMPION_KEY, msgspec.msgpack.encode({"version": version, "sha256": digest}))
        old = msgspec.msgpack.decode(served, type=dict[str, str])["sha256"] if served is not None else digest
        if old != digest:
            pipeline.expire(names.MODEL_KEY % old, _SUPERSEDED_SECONDS)
        pipeline.execute()
