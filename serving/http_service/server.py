"""Running the service: uvicorn, on the loopback interface unless there is a token, and connections that ask nothing closed."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import resource
import signal
from collections import OrderedDict
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from bandit.errors import InvalidSettingError
from bandit.settings.load import HTTP_TOKEN_VARIABLE, load_settings
from bandit.settings.sections import HttpSettings
from feature_repo.connection import client_of
from serving.feedback_log import FeedbackLog
from serving.http_service.app import make_app
from serving.http_service.guard import Guard
from serving.http_service.metrics import ServingMetrics
from serving.selector import QuerySelector

_REDIS_SECONDS = 5.0  # for feedback and for looks at the streams; a selection has its own deadline


def serve(settings_file: Path) -> None:
    """Serve until SIGTERM or SIGINT; requests under way are answered first, so that every decision made is both logged and returned.

    Raises: InvalidSettingError for a host beyond loopback without a token; whatever `QuerySelector.open` raises.
    """
    settings = load_settings(settings_file)
    token = os.environ.get(HTTP_TOKEN_VARIABLE, "")
    check_host(settings_file, settings.http.host, token)
    _allow_files(settings.http.max_connections)
    selector = QuerySelector.open(settings_file)
    client = client_of(settings.redis_url, timeout=_REDIS_SECONDS)
    app = make_app(selector, FeedbackLog(client, settings), ServingMetrics(selector, client))
    config = uvicorn.Config(
        Guard(app, settings.http, token),
        host=settings.http.host,
        port=settings.http.port,
        http=_protocol(settings.http),
        ws="none",
        lifespan="on",
        access_log=False,
        log_level="info",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=max(round(settings.http.idle_seconds), 1),
        timeout_graceful_shutdown=max(round(settings.http.shutdown_seconds), 1),
        backlog=4096,
    )
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises it again once it has ended in order: that is no failure
        signal.signal(number, lambda *_: None)
    uvicorn.Server(config).run()


def check_host(settings_file: Path, host: str, token: str) -> None:
    """Without a token, nobody from another machine may connect. Raises: InvalidSettingError."""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local and not token:
        raise InvalidSettingError(str(settings_file), "http.host", f"{host} is not loopback: set {HTTP_TOKEN_VARIABLE} to serve others")


def _allow_files(connections: int) -> None:
    """Let the process hold as many sockets as it may be asked to."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections + 1024
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _protocol(settings: HttpSettings) -> type[asyncio.Protocol]:
    """Uvicorn's protocol, with patience for a request's headers and a bound on connections, of which the most idle one gives way."""
    silent: OrderedDict[HttpToolsProtocol, None] = OrderedDict()  # connections without a request under way, the most idle first

    class Bounded(HttpToolsProtocol):
        _patience: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)  # type: ignore[arg-type]
            self._wait()
            if len(self.connections) > settings.max_connections:
                most_idle = next(iter(silent))
                most_idle.give_up()  # type: ignore[attr-defined]

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def on_message_begin(self) -> None:
            self._wait()
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._stop_waiting()
            super().on_headers_complete()

        def on_response_complete(self) -> None:
            silent[self] = None
            super().on_response_complete()

        def give_up(self) -> None:
            """408, and close."""
            self._stop_waiting()
            if not self.transport.is_closing():
                self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
                self.transport.close()
            self.connections.discard(self)

        def _wait(self) -> None:
            self._stop_waiting()
            silent[self] = None
            self._patience = self.loop.call_later(settings.idle_seconds, self.give_up)

        def _stop_waiting(self) -> None:
            silent.pop(self, None)
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None

    found: type[Any] = Bounded
    return found
