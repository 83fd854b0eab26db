"""Names of hosts within a deadline: the system's own look-up waits for a silent name server for as long as it likes."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
import time
from concurrent.futures import Future

from serving.after_fork import renew_after_fork

_PATIENCE_SHARE = 0.5  # of the time left; then the addresses of last time are taken


class Resolver:
    """One look-up of a name at a time, in a thread of its own, for all who ask."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._last: dict[tuple[str, int], list[str]] = {}
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """The threads that look up are the parent's."""
        self._lock = threading.Lock()
        self._under_way: dict[tuple[str, int], Future[list[str]]] = {}

    def addresses(self, host: str, port: int, deadline: float) -> list[str]:
        """Addresses of the host; those of last time when the name server is silent. `deadline` is one of time.monotonic.

        Raises: OSError for a name that is not known, TimeoutError.
        """
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(host)
            return [host]
        key = (host, port)
        looking, known, left = self._look_up(key), self._last.get(key), deadline - time.monotonic()
        try:
            self._last[key] = looking.result(max(left * _PATIENCE_SHARE if known else left, 0.0))
        except TimeoutError:
            if not known:
                raise TimeoutError(f"the name {host} was not resolved in time") from None
            return known
        return self._last[key]

    def _look_up(self, key: tuple[str, int]) -> Future[list[str]]:
        with self._lock:
            looking = self._under_way.get(key)
            if looking is None or looking.done():
                looking = self._under_way[key] = Future()
                threading.Thread(target=_look_up, args=(key, looking), name="query-rewards-resolver", daemon=True).start()
            return looking


def _look_up(key: tuple[str, int], answer: Future[list[str]]) -> None:
    try:
        answer.set_result([str(found[4][0]) for found in socket.getaddrinfo(*key, type=socket.SOCK_STREAM)])
    except (OSError, ValueError) as error:  # a name that no name can be is a ValueError
        answer.set_exception(error if isinstance(error, OSError) else OSError(str(error)))


RESOLVER = Resolver()
