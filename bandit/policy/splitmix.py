"""Numbers from a seed. NumPy's generators make better ones, but take longer to be made than a request takes to draw with them.

Source: SplitMix64, Steele, Lea and Flood 2014; it passes BigCrush.
"""

from __future__ import annotations

_MASK = (1 << 64) - 1
_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_UNIT = 2.0**-53


class SplitMix64:
    """A source of randomness; the same seed, the same numbers, on every machine."""

    __slots__ = ("_state",)

    def __init__(self, seed: int) -> None:
        """Start from the seed's low 64 bits."""
        self._state = seed & _MASK

    def random(self, count: int) -> list[float]:
        """That many numbers within [0, 1), multiples of 2^-53."""
        start = self._state
        self._state = (start + count * _STEP) & _MASK
        return _fractions(start, count)


def _fractions(state: int, count: int) -> list[float]:
    numbers = [0.0] * count
    for place in range(count):
        state = (state + _STEP) & _MASK
        mixed = ((state ^ (state >> 30)) * _FIRST) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * _SECOND) & _MASK
        numbers[place] = ((mixed ^ (mixed >> 31)) >> 11) * _UNIT
    return numbers
