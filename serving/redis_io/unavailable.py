"""What takes the place of an answer that could not be had: a value, so that reading and logging read straight on."""

from __future__ import annotations

from dataclasses import dataclass

from bandit.errors import DeadlineExceededError, DependencyUnavailableError, FeatureStoreError


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Why there is no answer."""

    error: DependencyUnavailableError | FeatureStoreError

    @property
    def reachable(self) -> bool:
        """Whether Redis answered all the same: then a decision can be logged."""
        return not isinstance(self.error, DependencyUnavailableError)

    @property
    def too_late(self) -> bool:
        """Whether there is no time left for a choice without Redis either."""
        return isinstance(self.error, DeadlineExceededError)
