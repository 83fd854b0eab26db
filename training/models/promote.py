"""Promote: the champion's bytes to Redis, where serving takes them over within a second; and back again.

Two stores must agree: what Redis serves is the champion of the registry. So the intent is written to the data folder first, then Redis,
then the registry; every promotion, rollback and retraining begins with `repair`, which finishes what a killed one left.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from pathlib import Path

import msgspec

from bandit.errors import CorruptModelError, LeaseLostError, NoModelError, UnknownModelError
from bandit.model.linear_model import LinearModel, model_from_bytes, sha256
from bandit.settings.load import Settings
from feature_repo.connection import connect, translated
from feature_repo.keys import Keys
from training.claim import claim, running
from training.lock import Lease
from training.logs.writing import write_whole
from training.models.registry import ModelRegistry

_SUPERSEDED_SECONDS = 24 * 3600  # a model that no longer serves leaves Redis after a day; the registry keeps it
# One atomic step: no model without its pointer, no pointer without its model, and nothing from an owner that lost its lease.
_HAND_OVER = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2])
redis.call('SET', KEYS[3], ARGV[3])
if KEYS[4] ~= KEYS[3] then redis.call('EXPIRE', KEYS[4], ARGV[4]) end
return 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promoted:
    """The version that serves now, and the one that served before (empty for none)."""

    version: str
    sha256: str
    before: str


class _Intent(msgspec.Struct, frozen=True, kw_only=True):
    """A promotion, or a rollback (`back`), that must be finished once it is written."""

    version: str
    before: str
    back: bool


def promote(settings: Settings, *, version: str | None = None) -> Promoted:
    """Make a version, the newest if None, the champion. Promoting the champion again repeats the hand-over, which changes nothing.

    Raises: NoModelError, UnknownModelError, CorruptModelError, DependencyUnavailableError, RegistryError, LockHeldError; then the old model
    goes on serving, or the next run finishes the promotion.
    """
    with running(settings, "promote") as lease:
        repair(settings)
        registry = ModelRegistry(settings)
        chosen = version or registry.newest()
        if chosen is None:
            raise NoModelError
        return _carry_out(settings, registry, lease, _Intent(version=chosen, before=registry.champion() or "", back=False))


def rollback(settings: Settings) -> Promoted:
    """Make the champion before this one serve again. Where a killed rollback is left, it is finished, and goes no step further.

    Raises: NoEarlierChampionError; otherwise as `promote`.
    """
    with running(settings, "rollback") as lease:
        left = _intent(settings)
        repair(settings)
        registry = ModelRegistry(settings)
        champion = registry.champion() or ""
        if left is not None and left.back and left.version == champion:
            return Promoted(version=champion, sha256=registry.sha256_of(champion) or "", before=left.before)
        return _carry_out(settings, registry, lease, _Intent(version=registry.before_champion(), before=champion, back=True))


def repair(settings: Settings) -> str:
    """Finish what a killed promotion left, and let Redis and the registry agree; returns what was done, empty for nothing.

    What Redis serves is the truth: its pointer is fenced, the registry's alias is not. Only a Redis without a pointer, which lost its data,
    gets the champion again.

    Raises: DependencyUnavailableError, RegistryError, LockHeldError.
    """
    with running(settings, "repair") as lease:
        registry, left = ModelRegistry(settings), _intent(settings)
        if left is not None:
            try:
                _carry_out(settings, registry, lease, left)
            except (UnknownModelError, CorruptModelError):  # it cannot be handed over any more: what serves goes on serving
                _file(settings).unlink()
            else:
                return f"the {'rollback' if left.back else 'promotion'} to version {left.version} was interrupted, and is finished now"
        served, champion = _served(settings), registry.champion()
        if served is None:
            return _serve_again(settings, registry, lease, champion)
        version = served["version"]
        if version == champion or registry.sha256_of(version) != served["sha256"]:
            return ""
        later = champion is not None and int(version) > int(champion)
        registry.set_champion(version, champion if later else None)
        return f"the registry said that {champion or 'no model'} serves, Redis that {version} does: the registry follows"


def _serve_again(settings: Settings, registry: ModelRegistry, lease: Lease, champion: str | None) -> str:
    try:
        if champion is not None:
            _hand_over(settings, lease, champion, registry.load(champion))
            return f"Redis had lost the champion, version {champion}, and has it again"
    except CorruptModelError:
        pass  # serving could not load it either: the next model is a first one
    return ""


def _carry_out(settings: Settings, registry: ModelRegistry, lease: Lease, intent: _Intent) -> Promoted:
    model = registry.load(intent.version)
    _refuse_unusable(intent.version, model)
    lease.check()
    write_whole(_file(settings), msgspec.json.encode(intent))
    try:
        digest = _hand_over(settings, lease, intent.version, model)
        registry.set_champion(intent.version, None if intent.back else intent.before or None)
    except LeaseLostError:
        _file(settings).unlink(missing_ok=True)  # written in the moment in which the lease was lost: nobody is to finish it
        raise
    _file(settings).unlink()
    return Promoted(version=intent.version, sha256=digest, before=intent.before)


def _hand_over(settings: Settings, lease: Lease, version: str, model: LinearModel) -> str:
    data = model.to_bytes()
    digest = sha256(data)
    model_from_bytes(data, digest)  # the very bytes that serving will read
    held = claim(settings, lease)
    served = _served(settings)
    old = served["sha256"] if served is not None else digest
    keys = Keys.of(settings.feature_repo_path)
    changed = keys.deployment, keys.champion, keys.model(digest), keys.model(old)
    pointer = msgspec.msgpack.encode({"version": version, "sha256": digest})
    client = connect(settings.redis_url)
    with translated(settings.redis_url):
        if not client.eval(_HAND_OVER, len(changed), *changed, held, pointer, data, _SUPERSEDED_SECONDS):
            raise LeaseLostError(lease.step)
    return digest


def _refuse_unusable(version: str, model: LinearModel) -> None:
    """A model with the right digest may still hold numbers that serving cannot use."""
    manifest = model.manifest
    numbers = [manifest.prior_mean, manifest.prior_strength, *manifest.topic_means.values(), *astuple(manifest.exploration)]
    if not all(math.isfinite(number) for number in numbers) or manifest.prior_strength <= 0.0:
        raise CorruptModelError(
            f"version {version}", "its prior or its exploration holds numbers that are not finite, or a strength below 0"
        )


def _served(settings: Settings) -> dict[str, str] | None:
    client = connect(settings.redis_url)
    with translated(settings.redis_url):
        pointer = client.get(Keys.of(settings.feature_repo_path).champion)
    try:
        served = msgspec.msgpack.decode(pointer, type=dict[str, str]) if pointer is not None else {}
    except msgspec.MsgspecError:
        return None  # torn: as good as lost
    return served if {"version", "sha256"} <= served.keys() else None


def _file(settings: Settings) -> Path:
    return settings.data_path / "promotion.json"


def _intent(settings: Settings) -> _Intent | None:
    file = _file(settings)
    return msgspec.json.decode(file.read_bytes(), type=_Intent) if file.exists() else None
