"""What a decision may spend on trying clusters out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bandit.errors import InvalidValueError


@dataclass(frozen=True, slots=True, kw_only=True)
class Exploration:
    """What the bandit may spend on trying clusters out.

    optimism: standard deviations added to the predicted rate; budget: share of the greedy value that one decision may give up;
    impressions_per_query: impressions that a drawn query is expected to bring, for counting those in flight; residual_limit: reward
    per impression that the model may add to a shrunk rate or take from it, for a learner that saw few rows extrapolates.
    """

    optimism: float
    budget: float
    impressions_per_query: float
    residual_limit: float

    def __post_init__(self) -> None:
        """Refuse values that would break the guarantee."""
        if not 0.0 <= self.optimism < np.inf:
            raise InvalidValueError("optimism", expected="a finite number, 0 or more", received=self.optimism)
        if not 0.0 < self.budget <= 1.0:
            raise InvalidValueError("exploration budget", expected="within (0, 1]", received=self.budget)
        if not 0.0 < self.impressions_per_query < np.inf:
            raise InvalidValueError("impressions_per_query", expected="a finite number above 0", received=self.impressions_per_query)
        if not self.residual_limit >= 0.0:
            raise InvalidValueError("residual_limit", expected="0 or more", received=self.residual_limit)
