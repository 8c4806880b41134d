"""URLs as they may be shown, and texts of others that may have secrets in them."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus, unquote, unquote_plus

# Where a chain goes on: before another URL, a protocol alone, or a path. Not within a password.
_NEXT = re.compile(r"::(?=[A-Za-z][A-Za-z0-9+.-]*(?:://|::)|[./~]|[A-Za-z0-9+._-]+(?:/[^@]*)?$)")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s<>\"'`]+")
_PORT = re.compile(r"(?:[^:\[]*|\[[^\]]*\])(?::\d*)?$")
_HIDDEN = "..."
_NAMED = re.compile(r"(?:redis|valkey)s?:|unix:", re.IGNORECASE)
_PLAIN = re.compile(r"[\w.-]*$", re.ASCII)
_SECRET_NAME = re.compile(
    r"pass|pwd|secret|token|sig|key|auth|cred|sas|session|cookie|hmac|code|private|account|conn",
    re.IGNORECASE,
)
# Shorter ones cannot be distinguished from the words of a message.
_SHORTEST = 3
# Of values whose names do not say that they are secrets.
_SHORTEST_UNNAMED = 8
# What libraries leave as it is when they quote a part of a URL.
_LEFT_ALONE = ("", "/", "!$'()*,/:;=@?", "!$&'()*+,;=:@/?")


def without_secret(url: str) -> str:
    """Leave out what may be a secret of a URL, or of a chain of them: passwords, and queries.

    Rather too much than too little: a password may have any of the characters that end it.
    """
    return "::".join(_shown(part) for part in _NEXT.split(url))


def without_secrets(text: str) -> str:
    """Leave out what may be a secret of any URL in a text."""
    return _IN_TEXT.sub(lambda found: without_secret(found[0]), text)


def check_userinfo(url: str) -> None:
    """Refuse a password that cannot be separated from the rest of its URL; ValueError."""
    for part in _NEXT.split(url):
        scheme = _SCHEME.match(part)
        rest = part[scheme.end() :] if scheme else ""
        authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
        if "@" in rest and "@" not in authority and not _PORT.match(authority):
            raise ValueError(
                f"the user or password of {_shown(part)} has a character that ends it: write / ? # "
                "in it as %2F %3F %23"
            )


def is_secret_name(name: str) -> bool:
    """Return whether what has such a name may be a secret."""
    return bool(_SECRET_NAME.search(name))


def portable(url: str) -> tuple[str, tuple[str, ...]]:
    """Take what may be secret out of a URL, or of a chain of them, so that it still is one.

    Returns
    -------
    tuple
        The URL, and the names of what was taken out.
    """
    parts = _NEXT.split(url)
    without = [_portable(part) for part in parts]
    names = dict.fromkeys(name for _, names in without for name in names)
    return "::".join(part for part, _ in without), tuple(names)


def _portable(part: str) -> tuple[str, list[str]]:
    scheme = _SCHEME.match(part)
    if scheme is None:
        return part, []
    _, at, host = _userinfo(part[scheme.end() :])
    taken = ["user and password"] if at else []
    path, mark, query = host.partition("?")
    query, hash_, name = query.partition("#")
    given = query.split("&") if mark else []
    kept = [each for each in given if not is_secret_name(each.partition("=")[0])]
    # Of a signed query nothing is of use without the rest.
    if len(kept) < len(given):
        taken.append("query")
        kept = []
    return f"{scheme[0]}{path}{'?' if kept else ''}{'&'.join(kept)}{hash_}{name}", taken


class Secrets:
    """What must not be in a message: passwords, keys and signatures of one store.

    Parameters
    ----------
    url : str
        Chained ones too.
    options : mapping
        Of what opens it.
    """

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        words = {*_of_url(url), *_of_options(options, named=False)}
        forms = {form for word in words for form in _forms(word) if len(form) >= _SHORTEST}
        # The longest first: one may be a part of another.
        self._forms = sorted(forms, key=len, reverse=True)

    def hide(self, text: str) -> str:
        """Leave them out of a text, and what looks like one in any URL of it."""
        return without_secrets(self.hide_known(text))

    def hide_known(self, text: str) -> str:
        """Leave them out of a text, and nothing else."""
        for form in self._forms:
            text = text.replace(form, _HIDDEN)
        return text


def _shown(part: str) -> str:
    scheme = _SCHEME.match(part)
    if scheme is None:
        return _without_query("", part)
    rest = part[scheme.end() :]
    user, at, host = _userinfo(rest)
    if not at:
        return scheme[0] + _without_query(scheme[0], rest)
    name, colon, password = user.partition(":")
    shown = f"{name}:{_HIDDEN}@" if colon else f"{_HIDDEN}@"
    # A question mark may belong to the password, or what follows it to the query.
    return scheme[0] + shown + (_without_query(scheme[0], host) if "?" not in password else "")


def _userinfo(rest: str) -> tuple[str, str, str]:
    """Split at the end of a password: at the last @, if there is one at all."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in authority or ":" in re.sub(r"^\[[^\]]*\]", "", authority):
        return rest.rpartition("@")
    return "", "", rest


def _without_query(scheme: str, text: str) -> str:
    path, hash_, name = text.partition("#")
    # In a URL of Redis the name of an array; else it may be a token, or the rest of one.
    if hash_ and ("=" in name or ("?" in path and not _NAMED.match(scheme))):
        name = _HIDDEN
    path, mark, query = path.partition("?")
    parts = [each.partition("=") for each in query.split("&")]
    shown = "&".join(
        f"{key}={_HIDDEN}" if equals and _PLAIN.match(key) else _HIDDEN for key, equals, _ in parts
    )
    return path + (f"?{shown}" if mark else "") + hash_ + name


def _of_url(url: str) -> Iterator[str]:
    for part in _NEXT.split(url):
        scheme = _SCHEME.match(part)
        if scheme is None:
            continue
        rest = part[scheme.end() :]
        user, at, host = _userinfo(rest)
        if at:
            name, colon, password = user.partition(":")
            yield password if colon else name
            if "?" in password:
                yield f"{password}@{host}"  # it may be a query with an @ in it
            yield from _basic(name, password)
        for text in (rest, host):
            query = text.partition("?")[2]
            surely = not at or text is host  # and no part of a password
            if surely:
                yield query
            for each in query.split("&"):
                name, equals, value = each.partition("=")
                if surely and not equals:
                    yield name  # or the rest of what is before it
                named = bool(_SECRET_NAME.search(name))
                if len(value) >= (_SHORTEST if named else _SHORTEST_UNNAMED):
                    yield value
                    yield value.partition("#")[0]


def _of_options(value: Any, *, named: bool) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _of_options(each, named=named or bool(_SECRET_NAME.search(str(key))))
    elif isinstance(value, list | tuple | set):
        for each in value:
            yield from _of_options(each, named=named)
        if named and len(value) == 2 and all(isinstance(each, str) for each in value):
            yield from _basic(*value)
    elif isinstance(value, str | bytes):
        text = value.decode("latin-1") if isinstance(value, bytes) else value
        if named:
            yield text
        yield from _of_url(text)


def _basic(name: str, password: str) -> Iterator[str]:
    """Return what a header of HTTP makes of them."""
    for pair in (f"{name}:{password}", f"{unquote(name)}:{unquote(password)}"):
        yield base64.b64encode(pair.encode("utf-8", "surrogatepass")).decode()


def _forms(word: str) -> Iterator[str]:
    """Return how a secret may be written."""
    for plain in (word, unquote(word), unquote_plus(word)):
        data = plain.encode("utf-8", "surrogatepass")
        quoted = [quote(data, safe=safe) for safe in _LEFT_ALONE]
        for form in (plain, *quoted, quote_plus(data), *map(str.lower, quoted[:1])):
            yield form
            yield repr(form)[1:-1]
            yield ascii(form)[1:-1]
            yield json.dumps(form)[1:-1]
        yield repr(data)[2:-1]
