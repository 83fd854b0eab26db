"""A TCP proxy that answers late: what a slow network or an overloaded Redis looks like."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit


class SlowProxy:
    """Passes bytes on; the server's answers `delay` seconds late."""

    def __init__(self, url: str, tls: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname, parts.port)
        self._parts, self._tls = parts, tls
        self.delay = 0.0
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._started.wait()

    @property
    def url(self) -> str:
        return urlunsplit(self._parts._replace(netloc=f"127.0.0.1:{self.port}"))

    def lead_to(self, url: str) -> None:
        """New connections go to another server, as behind a name that moved."""
        parts = urlsplit(url)
        self._target = (parts.hostname, parts.port)

    def _run(self) -> None:
        async def start() -> asyncio.Server:
            server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=4096, ssl=self._tls)
            self.port = server.sockets[0].getsockname()[1]
            self._started.set()
            return server

        server = self._loop.run_until_complete(start())
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.05))
        self._loop.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to, back = await asyncio.open_connection(*self._target)
        with contextlib.suppress(asyncio.CancelledError):  # `stop`; asyncio of Python 3.11 would complain
            await asyncio.gather(self._pump(reader, back, late=False), self._pump(to, writer, late=True))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, late: bool) -> None:
        try:
            while data := await source.read(1 << 16):
                if late and self.delay:
                    await asyncio.sleep(self.delay)
                sink.write(data)
                await sink.drain()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            sink.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


@contextlib.contextmanager
def slow_proxy(url: str, *, tls: ssl.SSLContext | None = None) -> Iterator[SlowProxy]:
    proxy = SlowProxy(url, tls)
    try:
        yield proxy
    finally:
        proxy.stop()
