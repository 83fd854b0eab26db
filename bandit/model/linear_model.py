"""The served model: Vowpal Wabbit's weights, exported, with a manifest; scored in NumPy."""

from __future__ import annotations

import hashlib
from functools import cached_property

import msgspec
import numpy as np

from bandit.errors import CorruptModelError
from bandit.model.exploration import Exploration
from bandit.model.featurize import FEATURE_NAMES, FEATURE_VERSION
from bandit.model.linear import predictions
from bandit.types import Floats, Floats32, Prior, Rate


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a model is: enough to refuse it, to repeat it and to explain it.

    Times are UTC microseconds; `weights_sha256` is that of the weights' little-endian float32 bytes.
    """

    feature_version: int
    feature_names: list[str]
    trained_from: int
    trained_until: int
    rows: int
    impressions: float
    learner: str
    prior_mean: float
    prior_strength: float
    topic_means: dict[int, float]
    exploration: Exploration
    weights_sha256: str


class LinearModel(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """Weights of d features, of the constant, and of their d(d+1)/2 products (i <= j, row by row).

    The prediction is a residual, in reward per impression: what the features know beyond the shrunk rate.
    """

    manifest: Manifest
    weights: bytes

    @cached_property
    def _weights(self) -> Floats32:
        return np.frombuffer(self.weights, "<f4")

    @cached_property
    def prior(self) -> Prior:
        """The levels above the user, as they were when this model was trained."""
        rate = Rate(mean=self.manifest.prior_mean, strength=self.manifest.prior_strength)
        return Prior(rate=rate, topic_means=self.manifest.topic_means)

    def predict(self, features: Floats32) -> Floats:
        """Residual reward per impression, float64 (n,), of features float32 (n, d).

        Equal to Vowpal Wabbit's own prediction to 1e-6 (`tests/bandit/model/test_vowpal.py`): the model learned costs, so the sign turns.
        """
        return -predictions(features, self._weights)

    def to_bytes(self) -> bytes:
        """The model on the wire: MessagePack of manifest and weights."""
        return msgspec.msgpack.encode(self)


def weight_count(features: int) -> int:
    """Number of weights of a model with this many features."""
    return features + 1 + features * (features + 1) // 2


def sha256(data: bytes) -> str:
    """Hexadecimal digest by which a model is named and checked."""
    return hashlib.sha256(data).hexdigest()


def model_from_bytes(data: bytes, expected_sha256: str) -> LinearModel:
    """Read a model that was handed over, or refuse it.

    Raises: CorruptModelError when the bytes are not those that were promised, or were made for another version of the features.
    """
    name = expected_sha256[:12]
    if sha256(data) != expected_sha256:
        raise CorruptModelError(name, f"its {len(data)} bytes have sha256 {sha256(data)[:12]}…; was the file cut short?")
    try:
        model = msgspec.msgpack.decode(data, type=LinearModel)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CorruptModelError(name, f"not a model: {error}") from error
    manifest = model.manifest
    if manifest.feature_version != FEATURE_VERSION or manifest.feature_names != list(FEATURE_NAMES):
        raise CorruptModelError(name, f"made for feature version {manifest.feature_version}, this library has {FEATURE_VERSION}")
    if len(model.weights) != 4 * weight_count(len(manifest.feature_names)):
        raise CorruptModelError(name, f"{len(model.weights)} bytes of weights, expected {4 * weight_count(len(manifest.feature_names))}")
    if sha256(model.weights) != manifest.weights_sha256 or not np.isfinite(np.frombuffer(model.weights, "<f4")).all():
        raise CorruptModelError(name, "its weights are not finite, or not those that its manifest names")
    return model
