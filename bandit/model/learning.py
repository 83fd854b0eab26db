"""From training rows to a model: what the features know about a cluster beyond its shrunk rate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bandit.errors import InvalidValueError
from bandit.model.exploration import Exploration
from bandit.model.featurize import FEATURE_NAMES, FEATURE_VERSION
from bandit.model.linear_model import LinearModel, Manifest, sha256
from bandit.model.vowpal import Learner, fit
from bandit.types import Floats, Floats32, Ints, Prior

_SHRUNK_RATE = FEATURE_NAMES.index("shrunk_rate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """One row per drawn cluster that brought impressions; every array (rows,), but features float32 (rows, d) as they were served.

    `reward` is the total over the row's `impressions`, which are > 0; silence is an impression without reward. `decided_at` in UTC
    microseconds, ascending: the learner keeps up with drift by seeing rows in order.
    """

    features: Floats32
    reward: Floats
    impressions: Floats
    decided_at: Ints

    def __post_init__(self) -> None:
        """Refuse rows without impressions."""
        if not (self.impressions > 0.0).all():
            raise InvalidValueError("impressions", expected="above 0 in each row", received=f"row {int(np.argmin(self.impressions))}")

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.reward)

    def part(self, start: int, end: int) -> Examples:
        """Rows `start` to `end`, exclusive."""
        return Examples(
            features=self.features[start:end],
            reward=self.reward[start:end],
            impressions=self.impressions[start:end],
            decided_at=self.decided_at[start:end],
        )

    @property
    def residual(self) -> Floats:
        """Reward per impression minus the shrunk rate that was served, (rows,)."""
        return np.asarray(self.reward / self.impressions - self.features[:, _SHRUNK_RATE], np.float64)


def learn(examples: Examples, prior: Prior, exploration: Exploration, learner: Learner) -> LinearModel:
    """A model of the residual: cost = -(reward per impression - shrunk rate), one line per row, all of the same weight.

    Args:
        examples: at least one row.
        prior: the levels above the user, handed on to serving with the model.
        exploration: what decisions may spend, handed on likewise.
        learner: how Vowpal Wabbit shall learn.

    Raises: LearnerError, InvalidValueError.
    """
    rows = len(examples.reward)
    weights = fit(examples.features, -examples.residual, np.ones(rows), FEATURE_NAMES, learner).astype("<f4").tobytes()
    manifest = Manifest(
        feature_version=FEATURE_VERSION,
        feature_names=list(FEATURE_NAMES),
        trained_from=int(examples.decided_at.min()),
        trained_until=int(examples.decided_at.max()),
        rows=rows,
        impressions=float(examples.impressions.sum()),
        learner=" ".join(learner.arguments),
        prior_mean=prior.rate.mean,
        prior_strength=prior.rate.strength,
        topic_means=prior.topic_means,
        exploration=exploration,
        weights_sha256=sha256(weights),
    )
    return LinearModel(manifest=manifest, weights=weights)
