"""Every form of `redis_url` leads both sides to the same database of a real server."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
import redis

from bandit.errors import DependencyUnavailableError
from feature_repo.connection import client_of, connect
from feature_repo.store import open_store
from tests.certificates import Authority, Signed
from tests.served_world import Served, copied
from tests.slow_proxy import slow_proxy
from training.local_redis import URL_VARIABLE, local_redis

K = 4
PASSWORD = "a,b@c%d/e?f#g:h i=j\u00e9&"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One Redis, by all of its addresses."""

    port: int
    socket: Path

    def url(self, database: int) -> str:
        """The plainest."""
        return f"redis://:{quote(PASSWORD, safe='')}@127.0.0.1:{self.port}/{database}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("redis")
    options = ("--bind", "127.0.0.1", "::1") if socket.has_ipv6 else ()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(URL_VARIABLE, raising=False)
        with local_redis(options=(*options, "--unixsocket", str(folder / "redis.sock"))) as url:
            redis.Redis.from_url(url).config_set("requirepass", PASSWORD)
            made = Server(port=urlsplit(url).port or 0, socket=folder / "redis.sock")
            yield made
            connect(made.url(0)).config_set("requirepass", "")


FORMS = {
    "by path": "redis://:{password}@127.0.0.1:{port}/3",
    "by query": "redis://:{password}@127.0.0.1:{port}?db=3",
    "a name": "redis://default:{password}@localhost:{port}/3",
    "IPv6": "redis://:{password}@[::1]:{port}/3",
    "valkey": "valkey://:{password}@127.0.0.1:{port}/3",
    "unix": "unix://:{password}@{socket}?db=3",
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_leads_serving_and_feast_to_the_same_database(served: Served, server: Server, form: str) -> None:
    connect(server.url(3)).flushdb()
    url = FORMS[form].format(password=quote(PASSWORD, safe=""), port=server.port, socket=server.socket)
    with copied(served, server.url(3), url).open(deadline_ms=2000.0) as selector:
        chosen = [selector.select("u0", K), asyncio.run(selector.select_async("u0", K)), *selector.select_many(["u0"], K)]
    assert [(selection.logged, len(selection.queries)) for selection in chosen] == [(True, K)] * 3
    stored = connect(server.url(3))
    assert sum(stored.xlen(key) for key in stored.scan_iter("*", _type="stream")) == 3
    feast = open_store(served.settings().feature_repo_path, url).provider.online_store._client
    assert feast.dbsize() == client_of(url, timeout=1.0).dbsize() == stored.dbsize()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


def asking_for_a_certificate(authority: Authority) -> ssl.SSLContext:
    server, context = authority.sign("server"), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server.certificate, server.key)
    context.load_verify_locations(authority.certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def tls_url(port: int, authority: Authority, client: Signed, *, scheme: str = "rediss", host: str = "localhost") -> str:
    files = f"ssl_ca_certs={authority.certificate}&ssl_certfile={client.certificate}&ssl_keyfile={client.key}"
    return f"{scheme}://{host}:{port}/0?{files}"


@pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
def test_tls_with_an_authority_and_a_certificate_of_ones_own(served: Served, authority: Authority, scheme: str) -> None:
    """The proxy ends TLS as a server does: the binary that the tests bring knows none."""
    with slow_proxy(served.redis_url, tls=asking_for_a_certificate(authority)) as proxy:
        url = tls_url(proxy.port, authority, authority.sign("client"), scheme=scheme)
        with Served(folder=served.folder, redis_url=url).open(deadline_ms=2000.0) as selector:
            chosen = [selector.select("u0", K), asyncio.run(selector.select_async("u0", K)), *selector.select_many(["u0"] * 60, K)]
            assert all(selection.logged for selection in chosen)
            proxy.delay = 3.0  # TLS goes by the deadline too
            began = time.monotonic()
            assert not selector.select("u0", K).logged
            assert time.monotonic() - began < 2.0
            proxy.delay = 0.0
        assert open_store(served.settings().feature_repo_path, url).provider.online_store._client.dbsize() == served.redis.dbsize()
        stranger = Authority(authority.certificate.parent / "..")
        for refused in (
            url.replace(str(authority.certificate), str(stranger.certificate)),  # an authority that did not sign
            url.partition("&")[0],  # no certificate of the client
            url.replace("localhost", "127.0.0.2"),  # a name that the certificate does not have
        ):
            with pytest.raises(DependencyUnavailableError, match=r"(?i)ssl|certificate|connection|closed|reset"):
                connect(refused, timeout=2.0)
