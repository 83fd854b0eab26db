"""The one address of Redis, read once: what it cannot mean, or what we cannot do, is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

Kind: TypeAlias = Literal["tcp", "tls", "unix"]
_KINDS: Mapping[str, Kind] = {"redis": "tcp", "valkey": "tcp", "rediss": "tls", "valkeys": "tls", "unix": "unix"}
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_TLS = (*_FILES, "ssl_cert_reqs", "ssl_check_hostname")
_REQUIREMENTS = ("none", "optional", "required")
_BOOLEANS = {"true": True, "false": False}
_HINT = "in a user name or password, write '/', '?', '#' and '%' as %2F, %3F, %23 and %25"


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisAddress:
    """kind: of connection; options: of redis-py's connection of that kind, without timeouts and retries."""

    kind: Kind
    options: Mapping[str, Any]

    @classmethod
    def of(cls, url: str) -> Self:
        """Read `redis://`, `rediss://` (TLS), `unix://` or the same as `valkey://`, `valkeys://`; the database by path or by `?db=`.

        Raises: ValueError, which never repeats the URL: there may be a password in it.
        """
        parts = urlsplit(url)
        kind = _KINDS.get(parts.scheme)
        if kind is None:
            raise ValueError(f"expected {'://, '.join(_KINDS)}://")
        query = _query(parts, kind)
        options: dict[str, Any] = {"db": _database(parts, query)}
        if kind == "unix":
            if not parts.path or parts.hostname:
                raise ValueError("expected unix:///path/of/the.socket")
            options["path"] = unquote(parts.path)
        else:
            options |= _host_and_port(parts)
        options |= {name: _unquoted(value) for name, value in (("username", parts.username), ("password", parts.password)) if value}
        return cls(kind=kind, options=options | {name: value for name, value in query.items() if name != "db"})


def _host_and_port(parts: SplitResult) -> dict[str, Any]:
    try:
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"the port is not a number from 1 to 65535 ({_HINT})") from error
    if parts.fragment:
        raise ValueError(f"a '#' in it ({_HINT})")
    if not host:
        raise ValueError("it names no host")
    return {"host": unquote(host), "port": 6379 if port is None else port}


def _database(parts: SplitResult, query: Mapping[str, Any]) -> int:
    by_path = "" if parts.scheme == "unix" else parts.path.strip("/")
    by_query = query.get("db", "")
    if by_path and by_query and by_path != by_query:
        raise ValueError("the path names another database than ?db=")
    number = by_path or by_query or "0"
    if not (number.isascii() and number.isdigit()):
        raise ValueError(f"the database is not a number ({_HINT})")
    return int(number)


def _query(parts: SplitResult, kind: Kind) -> dict[str, Any]:
    """Options; each once."""
    allowed = ("db", *_TLS) if kind == "tls" else ("db",)
    options: dict[str, Any] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in ("username", "password"):
            raise ValueError(f"{name}: expected before the host, as in redis://user:password@host")
        if "@" in name + value:
            raise ValueError(f"a '?' before the '@' ({_HINT})")
        if name not in allowed:
            raise ValueError(f"option {name!r}: expected one of {', '.join(allowed)}")
        if name in options:
            raise ValueError(f"option {name!r} stands there twice")
        options[name] = value
    for name in _FILES:
        if name in options and not Path(options[name]).is_file():
            raise ValueError(f"{name}: no such file: {options[name]}")
    if "ssl_keyfile" in options and "ssl_certfile" not in options:
        raise ValueError("ssl_keyfile without ssl_certfile")
    if options.get("ssl_cert_reqs", "required") not in _REQUIREMENTS:
        raise ValueError(f"ssl_cert_reqs: expected one of {', '.join(_REQUIREMENTS)}")
    if "ssl_check_hostname" in options:
        value = options["ssl_check_hostname"].lower()
        if value not in _BOOLEANS:
            raise ValueError("ssl_check_hostname: expected true or false")
        options["ssl_check_hostname"] = _BOOLEANS[value]
    return options


def _unquoted(text: str) -> str:
    """Raises: ValueError for a '%' that is no escape: redis-py would send it as it stands, other clients not."""
    for escape in text.split("%")[1:]:
        if len(escape) < 2 or any(digit not in "0123456789abcdefABCDEF" for digit in escape[:2]):
            raise ValueError(f"a '%' that is no escape ({_HINT})")
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise ValueError("a user name or password that is not UTF-8") from None
