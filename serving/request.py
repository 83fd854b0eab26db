"""One call of `select`, checked."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from bandit.errors import InvalidValueError
from bandit.ids import MAX_ID_BYTES, id_problem
from bandit.policy.decide import DecisionRequest
from serving.modes import Existing


@dataclass(frozen=True, kw_only=True)
class Request(DecisionRequest):
    """What the caller wants; `started` on the clock of time.monotonic, the others as `QuerySelector.select` takes them."""

    fallback: Mapping[str, Sequence[str]] | None
    existing: Existing | None
    started: float

    @classmethod
    def of(
        cls,
        user_id: str,
        k: int,
        context: Mapping[str, str] | None = None,
        *,
        caps: Mapping[str, int] | None = None,
        fallback: Mapping[str, Sequence[str]] | None = None,
        existing: Existing | None = None,
        now: int | None = None,
        seed: int | None = None,
    ) -> Self:
        """Check what `QuerySelector.select` was called with; the clock and the system's randomness fill what is None.

        Raises: InvalidValueError.
        """
        check_request(user_id, k)
        return cls(
            user_id=user_id,
            k=k,
            context=dict(context or {}),
            caps=caps,
            fallback=fallback,
            existing=existing,
            now=time.time_ns() // 1000 if now is None else now,
            seed=secrets.randbits(63) if seed is None else seed,
            started=time.monotonic(),
        )

    def prepare(self) -> None:
        """Make what does not depend on the features: called while Redis reads them."""
        self.rng, self.decision_id  # noqa: B018 -- cached


def check_request(user_id: str, k: int) -> None:
    """Raises: InvalidValueError."""
    if not isinstance(k, int) or isinstance(k, bool) or k <= 0:
        raise InvalidValueError("k", expected="a whole number of queries, 1 or more", received=k)
    if not user_id or not isinstance(user_id, str):
        raise InvalidValueError("user_id", expected="a string that is not empty", received=user_id)
    if problem := id_problem(user_id):
        raise InvalidValueError("user_id", expected=f"an identifier ({problem.partition(' in ')[0]})", received=user_id[:MAX_ID_BYTES])
