"""A circuit breaker: a Redis that failed a few times in a row is left alone for a while, and nobody waits for it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError

from serving.after_fork import renew_after_fork

log = logging.getLogger(__name__)

_WHOLE = 0.8  # of the patience, that Redis must have had for its silence to count
_LATE = 0.2  # of the patience; a process that wakes later is busy itself


class CircuitBreaker:
    """Closed: everybody may call. Open: nobody. After the pause one caller may try; success closes it, failure opens it again."""

    def __init__(self, *, failures: int, pause: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Open after this many failures in a row, for `pause` seconds."""
        self._most, self._pause, self._clock = failures, pause, clock
        self._lock = threading.Lock()
        self._failures = 0
        self._error: Exception | None = None
        renew_after_fork(self)
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
            self._failures, self._opened_at = 0, None

    @property
    def locked_out(self) -> bool:
        """Whether Redis refused the password or the user when it was last asked: no pause mends that."""
        return bool(self._failures) and isinstance(self._error, AuthenticationError | AuthorizationError | NoPermissionError)

    def failed(self, error: Exception | None = None) -> None:
        """Redis refused, or did not answer although it had all the time that it may take (`was_patient`)."""
        with self._lock:
            self._failures += 1
            self._error = error
            if self._failures < self._most:
                return
            if self._opened_at is None:
                log.warning("Redis failed %d times in a row: left alone for %g s at a time", self._failures, self._pause)
            self._opened_at = self._clock()

    def after_fork(self) -> None:
        """Another thread of the parent may have held the lock."""
        self._lock = threading.Lock()


def was_patient(asked: float, until: float, patience: float) -> bool:
    """Whether Redis had its time, and this process did not wake so late that it may have missed the answer.

    Args:
        asked: when everything was sent, on the clock of time.monotonic.
        until: when waiting was to end.
        patience: seconds that Redis may take.
    """
    return until - asked >= _WHOLE * patience and time.monotonic() - until <= _LATE * patience
