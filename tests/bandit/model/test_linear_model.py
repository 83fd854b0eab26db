"""The served model: what it predicts, and which bytes it refuses."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from bandit.errors import CorruptModelError
from bandit.model.featurize import FEATURE_NAMES, FEATURE_VERSION
from bandit.model.linear_model import LinearModel, model_from_bytes, sha256, weight_count
from bandit.types import Prior, Rate
from tests.strategies import linear_model, random_model

D = len(FEATURE_NAMES)
PRIOR = Prior(rate=Rate(mean=0.2, strength=8.0), topic_means={3: 0.4, -1: 0.1})
DATA = random_model(0, PRIOR).to_bytes()


def read(data: bytes) -> LinearModel:
    """As if somebody had vouched for these bytes: only their content can give them away."""
    return model_from_bytes(data, sha256(data))


def test_a_model_survives_its_bytes():
    model, again = random_model(0, PRIOR), read(DATA)
    assert again == model
    assert again.prior == PRIOR
    assert again.to_bytes() == DATA
    features = np.random.default_rng(1).normal(size=(7, D)).astype(np.float32)
    np.testing.assert_array_equal(again.predict(features), model.predict(features))


def test_the_prediction_is_the_negative_of_constant_linear_and_all_products():
    rng = np.random.default_rng(2)
    weights, features = rng.normal(size=weight_count(D)), rng.normal(size=(5, D)).astype(np.float32)
    expected = []
    for x in features.astype(float):
        products = [x[i] * x[j] for i in range(D) for j in range(i, D)]
        expected.append(-(weights[:D] @ x + weights[D] + weights[D + 1 :] @ products))
    predicted = linear_model(weights).predict(features)
    assert predicted.dtype == np.float64
    np.testing.assert_allclose(predicted, expected, rtol=1e-4, atol=1e-4)


def test_weight_count_counts_each_feature_the_constant_and_each_product_once():
    assert [weight_count(d) for d in (0, 1, 2, 3)] == [1, 3, 6, 10]


def test_predictions_of_no_clusters_are_none():
    assert random_model(0).predict(np.zeros((0, D), np.float32)).shape == (0,)


@pytest.mark.parametrize("length", range(0, len(DATA), 23))
def test_a_truncated_model_is_refused_even_if_its_digest_was_taken_after_the_cut(length):
    with pytest.raises(CorruptModelError, match="cut short"):
        model_from_bytes(DATA[:length], sha256(DATA))
    with pytest.raises(CorruptModelError):
        read(DATA[:length])


def test_trailing_bytes_are_refused():
    with pytest.raises(CorruptModelError):
        read(DATA + b"\x00")


@pytest.mark.parametrize("place", range(0, len(DATA), 29))
def test_a_flipped_byte_is_refused_by_the_digest(place):
    flipped = bytearray(DATA)
    flipped[place] ^= 0xFF
    with pytest.raises(CorruptModelError, match="sha256"):
        model_from_bytes(bytes(flipped), sha256(DATA))


def test_without_the_digest_a_flipped_byte_is_refused_or_leaves_the_weights_as_they_were():
    """Never another error: a loader that polls must be able to keep the model it has."""
    refused = 0
    for place in range(len(DATA)):
        flipped = bytearray(DATA)
        flipped[place] ^= 0xFF
        try:
            model = read(bytes(flipped))
        except CorruptModelError:
            refused += 1
        else:
            assert model.weights == random_model(0).weights
    assert refused > len(random_model(0).weights)


@pytest.mark.parametrize(
    "changes",
    [
        {"feature_version": FEATURE_VERSION + 1},
        {"feature_names": [*FEATURE_NAMES[1:], FEATURE_NAMES[0]]},
        {"feature_names": list(FEATURE_NAMES[:-1])},
    ],
)
def test_a_model_of_other_features_is_refused(changes):
    with pytest.raises(CorruptModelError, match="feature version"):
        read(linear_model(np.zeros(weight_count(D)), **changes).to_bytes())


@pytest.mark.parametrize("length", [0, 1, weight_count(D) - 1, weight_count(D) + 1])
def test_a_model_of_too_few_or_too_many_weights_is_refused(length):
    with pytest.raises(CorruptModelError, match="bytes of weights"):
        read(linear_model(np.zeros(length)).to_bytes())


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(poison):
    weights = np.zeros(weight_count(D))
    weights[-1] = poison
    with pytest.raises(CorruptModelError, match="not finite"):
        read(linear_model(weights).to_bytes())


def test_weights_that_the_manifest_does_not_name_are_refused():
    with pytest.raises(CorruptModelError, match="manifest"):
        read(linear_model(np.zeros(weight_count(D)), weights_sha256=sha256(b"others")).to_bytes())


@pytest.mark.parametrize("data", [b"", b"\xc1", msgspec.msgpack.encode({}), msgspec.msgpack.encode([1, 2]), b"PK\x03\x04"])
def test_what_is_no_model_at_all_is_refused(data):
    with pytest.raises(CorruptModelError):
        read(data)
