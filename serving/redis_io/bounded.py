"""redis-py's connections with one deadline for a whole exchange: resolving the name, connecting, greeting, sending, and every read.

redis-py's own timeouts hold for each operation on the socket.
"""

from __future__ import annotations

import math
import select
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

import hiredis
import redis
from redis.connection import Connection, DefaultParser, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import MasterDownError, ReadOnlyError

from feature_repo.connection import connection_of
from serving.redis_io.resolver import RESOLVER

MORE: Any = object()  # what the parser says when a reply is not complete yet
LEADS_ELSEWHERE = (ReadOnlyError, MasterDownError)  # after a failover behind one name
_READ_AT_ONCE = 1 << 16
_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_SURE_SECONDS = 0.005  # after an exchange, a connection is not likely to be closed: servers close those that idle for seconds
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
    """A connected socket whose every operation ends by the deadline, whatever timeout is set on it.

    It never blocks: a timeout set for each operation would cost two more calls of the system than to wait when there is reason to.
    """

    __slots__ = ("_deadline", "_poll", "_socket")

    def __init__(self, connected: socket.socket, deadline: Deadline) -> None:
        connected.settimeout(0.0)
        self._socket, self._deadline = connected, deadline
        self._poll = select.poll()
        self._poll.register(connected, select.POLLIN)

    def sendall(self, data: bytes) -> None:
        """As socket.sendall."""
        while True:
            try:
                sent = self._socket.send(data)
            except _WOULD_BLOCK as error:
                self._wait_for(select.POLLIN if isinstance(error, ssl.SSLWantReadError) else select.POLLOUT)
            else:
                if sent == len(data):
                    return
                data = data[sent:]

    def recv(self, most: int) -> bytes:
        """As socket.recv."""
        if not (isinstance(self._socket, ssl.SSLSocket) and self._socket.pending()):  # decrypted already, and so not there to poll
            self._wait_for(select.POLLIN)
        while True:
            try:
                return self._socket.recv(most)
            except _WOULD_BLOCK as error:
                self._wait_for(select.POLLOUT if isinstance(error, ssl.SSLWantWriteError) else select.POLLIN)

    def recv_into(self, buffer: bytearray) -> int:
        """As socket.recv_into, for redis-py's greeting."""
        data = self.recv(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readable(self) -> bool:
        """Whether something is there to read, or the other side has closed; never waits."""
        return bool(self._poll.poll(0))

    def _wait_for(self, event: int) -> None:
        poll = self._poll
        if event != select.POLLIN:
            poll = select.poll()
            poll.register(self._socket, event)
        if not poll.poll(1000.0 * self._deadline.left()):
            raise TimeoutError("it did not answer in time")

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
        """Seconds that the deadline leaves, as redis-py asks for them."""
        return self.deadline.left()

    @socket_timeout.setter
    def socket_timeout(self, seconds: float | None) -> None:
        pass

    @property
    def socket_connect_timeout(self) -> float:
        """Seconds that the deadline leaves, as redis-py asks for them."""
        return self.deadline.left()

    def _connect(self) -> DeadlineSocket:
        return DeadlineSocket(super()._connect(), self.deadline)  # type: ignore[misc]  # of redis-py's class

    def is_stale(self, now: float) -> bool:
        """Whether the server has closed it, or has said what nobody asked; not looked at again right after an exchange."""
        return now - self.sent_at > _SURE_SECONDS and self._sock is not None and self._sock.readable()

    def exchange(self, commands: bytes, replies: int, deadline: float, meanwhile: Callable[[], None] | None = None) -> list[Any]:
        """Send, and read that many replies; a refusal has its ResponseError for a reply.

        redis-py connects and greets; its own reading takes twice as long for the same bytes.

        Raises: redis.RedisError, OSError; then it is to be disconnected.
        """
        self.deadline.at, self.sent_at = deadline, math.inf
        if self._sock is None:
            self.connect_check_health(check_health=False)  # type: ignore[attr-defined]
            self._reader = hiredis.Reader(notEnoughData=MORE, replyError=DefaultParser.parse_error)
        connected: DeadlineSocket = self._sock  # type: ignore[assignment]
        connected.sendall(commands)
        self.sent_at = time.monotonic()
        if meanwhile is not None:
            meanwhile()
        answers: list[Any] = []
        while len(answers) < replies:
            if (reply := next_reply(self._reader)) is not MORE:
                self.outdated = self.outdated or isinstance(reply, LEADS_ELSEWHERE)
                answers.append(reply)
            elif data := connected.recv(_READ_AT_ONCE):
                self._reader.feed(data)
            else:
                raise redis.ConnectionError("Redis closed the connection")
        return answers


def next_reply(reader: hiredis.Reader) -> Any:  # noqa: ANN401 -- Redis' answer
    """The next reply, its ResponseError for a refusal; MORE when it is not complete yet. Raises: redis.ConnectionError."""
    try:
        reply = reader.gets()
    except hiredis.ProtocolError as error:
        raise redis.ConnectionError(f"not an answer of Redis: {error}") from error
    if isinstance(reply, redis.ConnectionError):  # it loads its data, or takes no more clients
        raise reply
    return reply


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
    made: Bounded = connection_of(url, {"tcp": BoundedTcp, "tls": BoundedTls, "unix": BoundedUnix})
    return made
