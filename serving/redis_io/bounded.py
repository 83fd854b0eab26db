"""redis-py's connections with one deadline for a whole exchange: resolving the name, connecting, greeting, sending, and every read.

redis-py's own timeouts hold for each operation on the socket.
"""

from __future__ import annotations

import math
import select
import socket
import time
from collections.abc import Callable
from typing import Any

from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import MasterDownError, ReadOnlyError, ResponseError

from feature_repo.connection import connection_of
from serving.redis_io.resolver import RESOLVER

_LEAST_SECONDS = 0.001  # a reply that is here already is taken even after the deadline


class Deadline:
    """When an exchange ends, on the clock of time.monotonic."""

    __slots__ = ("at",)

    def __init__(self) -> None:
        self.at = math.inf

    def left(self) -> float:
        """Seconds."""
        return max(self.at - time.monotonic(), _LEAST_SECONDS)


class DeadlineSocket:
    """A connected socket whose every operation ends by the deadline, whatever timeout is set on it."""

    __slots__ = ("_deadline", "_poll", "_socket")

    def __init__(self, connected: socket.socket, deadline: Deadline) -> None:
        self._socket, self._deadline = connected, deadline
        self._poll = select.poll()
        self._poll.register(connected, select.POLLIN)

    def sendall(self, data: bytes) -> None:
        """As socket.sendall."""
        self._socket.settimeout(self._deadline.left())
        self._socket.sendall(data)

    def recv_into(self, buffer: bytearray) -> int:
        """As socket.recv_into."""
        self._socket.settimeout(self._deadline.left())
        return self._socket.recv_into(buffer)

    def readable(self) -> bool:
        """Whether something is there to read, or the other side has closed; never waits."""
        return bool(self._poll.poll(0))

    def settimeout(self, seconds: float | None) -> None:
        """Nothing: the deadline holds."""

    def shutdown(self, how: int) -> None:
        """As socket.shutdown."""
        self._socket.shutdown(how)

    def close(self) -> None:
        """As socket.close."""
        self._socket.close()


class Bounded:
    """What the three kinds below have in common."""

    _sock: DeadlineSocket | None

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 -- redis-py's
        self.deadline = Deadline()
        self.sent_at = math.inf
        self.outdated = False  # this is no longer the server to write to
        super().__init__(**options)

    @property
    def socket_timeout(self) -> float:
        """What is left."""
        return self.deadline.left()

    @socket_timeout.setter
    def socket_timeout(self, seconds: float | None) -> None:
        pass

    @property
    def socket_connect_timeout(self) -> float:
        """What is left."""
        return self.deadline.left()

    def _connect(self) -> DeadlineSocket:
        return DeadlineSocket(super()._connect(), self.deadline)  # type: ignore[misc]  # of redis-py's class

    def is_stale(self) -> bool:
        """Whether the server has closed it, or has said what nobody asked."""
        return self._sock is not None and self._sock.readable()

    def exchange(self, commands: bytes, replies: int, deadline: float, meanwhile: Callable[[], None] | None = None) -> list[Any]:
        """Send, and read that many replies; a refusal has its ResponseError for a reply.

        Raises: redis.RedisError; then it is disconnected.
        """
        self.deadline.at, self.sent_at = deadline, math.inf
        self.send_packed_command([commands])  # type: ignore[attr-defined]  # connects first if need be
        self.sent_at = time.monotonic()
        if meanwhile is not None:
            meanwhile()
        return [self._reply() for _ in range(replies)]

    def _reply(self) -> Any:  # noqa: ANN401 -- Redis' answer
        try:
            return self.read_response()  # type: ignore[attr-defined]
        except ResponseError as error:
            self.outdated = self.outdated or isinstance(error, ReadOnlyError | MasterDownError)
            return error


class _Resolved(Connection):  # type: ignore[misc]  # redis-py is untyped to us, here and below
    """The name is resolved within the deadline. TLS goes on to ask for the certificate of the name."""

    deadline: Deadline
    host: str

    def _connect(self) -> Any:  # noqa: ANN401 -- redis-py's
        name, error = self.host, OSError("the name has no addresses")
        for address in RESOLVER.addresses(name, self.port, self.deadline.at):
            self.host = address
            try:
                return super()._connect()
            except OSError as refused:
                error = refused
            finally:
                self.host = name
        raise error


class BoundedTcp(Bounded, _Resolved):
    """redis://."""


class BoundedTls(Bounded, SSLConnection, _Resolved):  # type: ignore[misc]
    """rediss://."""


class BoundedUnix(Bounded, UnixDomainSocketConnection):  # type: ignore[misc]
    """unix://."""


def bounded_connection(url: str) -> Bounded:
    """A connection to this Redis, made by its first exchange."""
    kinds = {Connection: BoundedTcp, SSLConnection: BoundedTls, UnixDomainSocketConnection: BoundedUnix}
    made: Bounded = connection_of(url, kinds)
    return made
