"""Reward of one impression, from the actions that followed it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from bandit.errors import InvalidValueError

IMPRESSION = "impression"


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardScheme:
    """Weight of each action type, and the range of one impression's reward.

    Unit: reward per impression; silence is 0. A negative weight is negative feedback (a hide).
    """

    weights: Mapping[str, float]
    minimum: float
    maximum: float

    def __post_init__(self) -> None:
        """Refuse an empty range, a range without silence, and weights outside of it."""
        if not self.minimum <= 0.0 <= self.maximum or self.minimum == self.maximum:
            raise InvalidValueError("reward range", expected="minimum <= 0 <= maximum, not both 0", received=(self.minimum, self.maximum))
        for action, weight in self.weights.items():
            if not self.minimum <= weight <= self.maximum:
                raise InvalidValueError(f"weight of {action!r}", expected=f"within [{self.minimum}, {self.maximum}]", received=weight)
        if self.weights.get(IMPRESSION, 0.0) != 0.0:
            raise InvalidValueError(
                "weight of 'impression'", expected="0: silence is the zero of the scale", received=self.weights[IMPRESSION]
            )

    @property
    def action_types(self) -> list[str]:
        """Known action types, `impression` first, then in the order of the settings."""
        return [IMPRESSION, *(action for action in self.weights if action != IMPRESSION)]

    def impression_reward(self, actions: Iterable[str]) -> float:
        """Reward of one impression with these actions: clip(sum of weights, minimum, maximum)."""
        total = 0.0
        for action in actions:
            if action != IMPRESSION:
                if action not in self.weights:
                    raise InvalidValueError("action", expected=f"one of {self.action_types}", received=action)
                total += self.weights[action]
        return float(np.clip(total, self.minimum, self.maximum))
