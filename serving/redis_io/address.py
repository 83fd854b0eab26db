"""Where Redis is, and how to greet it: read once from the URL."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import hiredis
from redis.connection import parse_url

from bandit.errors import DependencyUnavailableError
from feature_repo.connection import away


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A Redis. `greeting` holds the packed commands that a new connection sends first, `greetings` says how many they are."""

    url: str
    host: str
    port: int
    tls: ssl.SSLContext | None
    greeting: bytes
    greetings: int

    @classmethod
    def of(cls, url: str) -> Self:
        """Read `redis://[[user]:password@]host[:port][/db]`, or rediss:// for TLS.

        The options of rediss:// are redis-py's: `ssl_ca_certs`, `ssl_cert_reqs=none`, `ssl_certfile`, `ssl_keyfile`.

        Raises: ValueError for another scheme.
        """
        options: Mapping[str, Any] = parse_url(url)
        greetings = []
        if options.get("password"):
            user = [options["username"]] if options.get("username") else []
            greetings.append(("AUTH", *user, options["password"]))
        if options.get("db"):
            greetings.append(("SELECT", str(options["db"])))
        return cls(
            url=url,
            host=options.get("host") or "127.0.0.1",
            port=options.get("port") or 6379,
            tls=_context(options) if url.startswith("rediss://") else None,
            greeting=b"".join(hiredis.pack_command(command) for command in greetings),
            greetings=len(greetings),
        )

    def away(
        self, reason: Exception | str, kind: type[DependencyUnavailableError] = DependencyUnavailableError
    ) -> DependencyUnavailableError:
        """Our error for this Redis not answering."""
        return away(self.url, reason, kind)


def _context(options: Mapping[str, Any]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
    if options.get("ssl_cert_reqs") == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if options.get("ssl_certfile"):
        context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    return context
