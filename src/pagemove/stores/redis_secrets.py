"""URLs and errors of Redis as they may be shown: without passwords."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_SECRET = ("password", "username", "credential", "token", "secret")
_HIDDEN = "..."
# Shorter ones would be found in words that are none.
_SHORTEST = 3
_ENDS = re.compile(r"[/?#]")


def shown(url: str) -> str:
    """Return of a URL where the server is: scheme, host, port, path of a socket, database."""
    scheme, mark, _ = url.partition("://")
    if not mark:
        return _HIDDEN
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
        host = parts.hostname or ""
    except ValueError:
        return f"{scheme}://{_HIDDEN}"
    if "@" in parts.path + parts.query + parts.fragment:
        # A password that should have been percent-encoded: part of it is in what looks like a host.
        return f"{scheme}://{_HIDDEN}"
    host = f"[{host}]" if ":" in host else host
    numbers = parse_qs(parts.query).get("db", [])
    database = f"?db={numbers[0]}" if numbers and numbers[0].isdigit() else ""
    is_place = scheme == "unix" or parts.path.strip("/").isdigit()
    return f"{scheme}://{host}{port}{parts.path if is_place else ''}{database}"


def check_userinfo(url: str, *, is_named: bool = False) -> None:
    """Refuse a password that cannot be separated from the rest of its URL; ValueError.

    `is_named`: what follows a ``#`` is the name of an array, which may have an ``@``.
    """
    scheme, _, rest = url.partition("://")
    authority = _ENDS.split(rest, maxsplit=1)[0]
    if "@" not in rest:
        return
    rest, _, name = rest.partition("#")
    path, _, query = rest.partition("?")
    host, colon, port = authority.rpartition(":")
    has_user = "@" in authority
    if scheme.lower() == "unix":
        # The path of a socket may have any character, and no server before it.
        is_sound = has_user or not authority
    elif has_user:
        # Another @ would be the one that ends the password.
        is_sound = "@" not in path[len(authority) :] + query
    else:
        is_port = not port or port.isdigit()
        is_server = not colon or authority.endswith("]") or (host != "" and is_port)
        is_sound = is_server and "@" not in path
    if is_named:
        name = name if "#" in name.rpartition("@")[2] else ""
    if not is_sound or "@" in query.partition("=")[0] + name:
        raise ValueError(
            f"the user or password of {shown(url)} has a character that ends it: write / ? # in it "
            "percent-encoded, as %2F %3F %23"
        )


def secrets_of(url: str, options: Mapping[str, Any]) -> list[str]:
    """Return what must not be seen of a URL and of options for redis-py, the longest first."""
    found = set()
    for name, value in options.items():
        if _is_secret(name) and isinstance(value, str | bytes):
            found.add(value if isinstance(value, str) else value.decode(errors="replace"))
    authority, _, rest = url.partition("://")[2].partition("?")
    if "@" in authority:
        # The last @ of all: a password may have some that are not encoded.
        found.update(authority.rpartition("@")[0].split(":", 1))
    for part in rest.split("&"):
        name, _, value = part.partition("=")
        if _is_secret(name):
            found.add(value)
    found |= {unquote(each) for each in found}
    return sorted((each for each in found if len(each) >= _SHORTEST), key=len, reverse=True)


def scrub(error: BaseException | None, secrets: list[str]) -> None:
    """Leave secrets out of an exception, and of those that it came from.

    A server may quote what it was sent: one that knows no AUTH echoes the password.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        error.args = tuple(
            _scrubbed(each, secrets) if isinstance(each, str) else each for each in error.args
        )
        if error.__cause__ is not None and error.__context__ is not error.__cause__:
            scrub(error.__context__, secrets)
        error = error.__cause__ or error.__context__


def _scrubbed(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, _HIDDEN)
    return text


def _is_secret(name: str) -> bool:
    return any(word in name.lower() for word in _SECRET)
