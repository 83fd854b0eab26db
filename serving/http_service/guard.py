"""What stands before the application: the bearer token, the rate of one client, and the size and pace of a body."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bandit.settings.sections import HttpSettings

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/docs", "/openapi.json"})  # nothing secret; probes carry no token
_CLIENTS = 10_000  # addresses whose rate is remembered


class Guard:
    """ASGI middleware. Answers 401, 408, 413 and 429 itself; what passes has a whole body of a bounded size."""

    def __init__(self, app: ASGIApp, settings: HttpSettings, token: str, clock: Callable[[], float] = time.monotonic) -> None:
        """An empty token lets everybody in."""
        self._app, self._settings, self._clock = app, settings, clock
        self._expected = f"Bearer {token}".encode() if token else b""
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # address: requests left, when

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        guarded = bool(self._expected) and scope["path"] not in OPEN_PATHS
        if guarded and not hmac.compare_digest(headers.get(b"authorization", b""), self._expected):
            await _refuse(send, 401, "a bearer token is needed", (b"www-authenticate", b"Bearer"))
            return
        if not self._admits(scope["client"][0] if scope.get("client") else ""):
            await _refuse(send, 429, "too many requests from this address", (b"retry-after", b"1"))
            return
        body = await self._body(headers, receive)
        if isinstance(body, tuple):
            await _refuse(send, *body)
            return
        await self._app(scope, _whole(body, receive), send)

    def _admits(self, address: str) -> bool:
        """A token bucket: `burst` requests at once, `requests_per_second` in the long run."""
        now = self._clock()
        left, then = self._buckets.get(address, (float(self._settings.burst), now))
        left = min(left + (now - then) * self._settings.requests_per_second, float(self._settings.burst))
        admitted = left >= 1.0
        self._buckets[address] = (left - 1.0 if admitted else left, now)
        self._buckets.move_to_end(address)
        if len(self._buckets) > _CLIENTS:
            self._buckets.popitem(last=False)
        return admitted

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | tuple[int, str]:
        limit = self._settings.max_body_bytes
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > limit:
            return 413, f"a body of at most {limit} bytes is taken"
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._settings.idle_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return 408, "the client went away"
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limit:
                        return 413, f"a body of at most {limit} bytes is taken"
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            return 408, f"the body did not come within {self._settings.idle_seconds:g} s"


def _whole(body: bytes, receive: Receive) -> Receive:
    given = False

    async def once() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return once


async def _refuse(send: Send, status: int, detail: str, *headers: tuple[bytes, bytes]) -> None:
    body = json.dumps({"detail": detail}).encode()
    plain: list[Any] = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), (b"connection", b"close"), *headers]
    await send({"type": "http.response.start", "status": status, "headers": plain})
    await send({"type": "http.response.body", "body": body})
