"""A circuit breaker: a Redis that failed a few times in a row is left alone for a while, and nobody waits for it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)


class CircuitBreaker:
    """Closed: everybody may call. Open: nobody. After the pause one caller may try; success closes it, failure opens it again."""

    def __init__(self, *, failures: int, pause: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Open after this many failures in a row, for `pause` seconds."""
        self._most, self._pause, self._clock = failures, pause, clock
        self._lock = threading.Lock()
        self._failures = 0.0
        self._opened_at: float | None = None  # when it opened, or last let somebody try; None while closed

    @property
    def is_open(self) -> bool:
        """Whether Redis failed, and has not answered since."""
        return self._opened_at is not None

    @property
    def turns_away(self) -> bool:
        """Whether a caller need not even wait for its turn."""
        opened = self._opened_at
        return opened is not None and self._clock() < opened + self._pause

    def allows(self) -> bool:
        """Whether this caller may call now; who may says afterwards how it went."""
        if self._opened_at is None:
            return True
        with self._lock:
            if self._opened_at is None:
                return True
            now = self._clock()
            if now < self._opened_at + self._pause:
                return False
            self._opened_at = now  # should this caller never report, another one may try after a pause
            return True

    def succeeded(self) -> None:
        """Redis answered."""
        if self._opened_at is None and not self._failures:
            return
        with self._lock:
            if self._opened_at is not None:
                log.warning("Redis answers again")
            self._failures, self._opened_at = 0.0, None

    def failed(self, share: float = 1.0) -> None:
        """Redis did not answer, or not in time; `share` of a failure, in (0, 1], when it was not given all the time that it may take."""
        with self._lock:
            self._failures += share
            if self._failures < self._most:
                return
            if self._opened_at is None:
                log.warning("Redis failed %d times in a row: left alone for %g s at a time", self._failures, self._pause)
            self._opened_at = self._clock()
