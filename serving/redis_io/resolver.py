"""Names of hosts within a deadline: the system's own look-up waits for a silent name server for as long as it likes."""

from __future__ import annotations

import asyncio
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
        if _is_address(host):
            return [host]
        looking = self._look_up((host, port))
        with contextlib.suppress(TimeoutError):
            looking.exception(self._patience((host, port), deadline))
        return self._outcome((host, port), looking)

    async def addresses_async(self, host: str, port: int, deadline: float) -> list[str]:
        """The same for an event loop, whose own look-up would keep `asyncio.run` from ending."""
        if _is_address(host):
            return [host]
        looking, loop, ended = self._look_up((host, port)), asyncio.get_running_loop(), asyncio.Event()

        def tell(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits there any more
                loop.call_soon_threadsafe(ended.set)

        looking.add_done_callback(tell)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience((host, port), deadline)):
                await ended.wait()
        return self._outcome((host, port), looking)

    def _patience(self, key: tuple[str, int], deadline: float) -> float:
        left = max(deadline - time.monotonic(), 0.0)
        return left * _PATIENCE_SHARE if key in self._last else left

    def _outcome(self, key: tuple[str, int], looking: Future[list[str]]) -> list[str]:
        if looking.done():
            self._last[key] = looking.result()
        elif key not in self._last:
            raise TimeoutError(f"the name {key[0]} was not resolved in time")
        return self._last[key]

    def _look_up(self, key: tuple[str, int]) -> Future[list[str]]:
        with self._lock:
            looking = self._under_way.get(key)
            if looking is None or looking.done():
                looking = self._under_way[key] = Future()
                threading.Thread(target=_look_up, args=(key, looking), name="query-rewards-resolver", daemon=True).start()
            return looking


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _look_up(key: tuple[str, int], answer: Future[list[str]]) -> None:
    try:
        answer.set_result([str(found[4][0]) for found in socket.getaddrinfo(*key, type=socket.SOCK_STREAM)])
    except (OSError, ValueError) as error:  # a name that no name can be is a ValueError
        answer.set_exception(error if isinstance(error, OSError) else OSError(str(error)))


RESOLVER = Resolver()
