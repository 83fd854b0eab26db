"""Ports for servers that tests start: each worker has a range of its own, below those that the system gives to connections."""

from __future__ import annotations

import itertools
import os
import socket

_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_FIRST, _RANGE = 20_000, 1000
_ports = itertools.cycle(range(_FIRST + _RANGE * _WORKER, _FIRST + _RANGE * (_WORKER + 1)))


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    for port in itertools.islice(_ports, _RANGE):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError(f"no free port in {_RANGE} of worker {_WORKER}")
