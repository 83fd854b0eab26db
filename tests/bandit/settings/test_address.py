"""How one address of Redis is read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from bandit.errors import InvalidSettingError
from bandit.settings.address import RedisAddress
from bandit.settings.load import load_settings

HOST = {"host": "h", "port": 6379, "db": 3}
READ = {
    "redis://h/3": ("tcp", HOST),
    "redis://h?db=3": ("tcp", HOST),
    "redis://h/3?db=3": ("tcp", HOST),
    "valkey://h/3": ("tcp", HOST),
    "valkeys://h/3": ("tls", HOST),
    "rediss://h:1": ("tls", {"host": "h", "port": 1, "db": 0}),
    "redis://[::1]:7/2": ("tcp", {"host": "::1", "port": 7, "db": 2}),
    "unix:///a/b.sock?db=3": ("unix", {"path": "/a/b.sock", "db": 3}),
    "unix://u:p@/a/b.sock": ("unix", {"path": "/a/b.sock", "db": 0, "username": "u", "password": "p"}),
    "redis://:a,b%40%25%2F@h/3": ("tcp", HOST | {"password": "a,b@%/"}),
    "redis://u:p@ss@h/3": ("tcp", HOST | {"username": "u", "password": "p@ss"}),
    "rediss://h/3?ssl_check_hostname=false&ssl_cert_reqs=none": ("tls", HOST | {"ssl_check_hostname": False, "ssl_cert_reqs": "none"}),
}
REFUSED = {
    "http://h": "expected redis://",
    "h:6379": "expected redis://",
    "redis:///0": "no host",
    "redis://h/abc": "not a number",
    "redis://h/3?db=4": "another database",
    "redis://h:99999": "the port",
    "redis://:secret%x@h": "no escape",
    "redis://:secret%FF@h": "not UTF-8",
    "redis://:secret/b@h": "%2F",
    "redis://:secret#b@h": "%23",
    "redis://:secret?b@h": "%3F",
    "redis://h?password=secret": "before the host",
    "redis://h?socket_timeout=3": "expected one of db",
    "redis://h?ssl_ca_certs=/etc/passwd": "expected one of db",
    "redis://h?db=3&db=4": "twice",
    "rediss://h?ssl_ca_certs=/no/such": "ssl_ca_certs: no such file",
    "rediss://h?ssl_cert_reqs=maybe": "expected one of none",
    "unix://relative.sock": "unix:///path",
}


@pytest.mark.parametrize("url", READ)
def test_an_address_is_read(url: str) -> None:
    address = RedisAddress.of(url)
    assert (address.kind, dict(address.options)) == READ[url]


@pytest.mark.parametrize("url", REFUSED)
def test_an_address_that_cannot_be_used_is_refused_at_loading_and_never_shown(url: str, tmp_path: Path) -> None:
    file = tmp_path / "query_rewards.toml"
    file.write_text(f'redis_url = "{url}"\n')
    with pytest.raises(InvalidSettingError, match="redis_url") as refused:
        load_settings(file)
    assert REFUSED[url] in str(refused.value)
    assert "secret" not in str(refused.value)
