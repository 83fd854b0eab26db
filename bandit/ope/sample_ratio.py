"""Whether the arms of an experiment came out as large as they should."""

from __future__ import annotations

from collections.abc import Sequence

from bandit.ope.diagnostics import chi_squared_tail


def sample_ratio_p(counts: Sequence[int], shares: Sequence[float]) -> float:
    """Chance of a split at least as uneven as `counts` when users fall into arms by `shares`: below 1e-3, look for the bug first.

    Source: Fabijan et al., Diagnosing sample ratio mismatch in online controlled experiments, 2019; Pearson's chi-squared.
    """
    total, whole = sum(counts), sum(shares)
    if not total or len(counts) < 2:
        return 1.0
    expected = [total * share / whole for share in shares]
    return chi_squared_tail(sum((n - e) ** 2 / e for n, e in zip(counts, expected, strict=True)), len(counts) - 1)
