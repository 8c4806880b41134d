"""URLs as they may be shown."""

from __future__ import annotations

import re

_SECRET = re.compile(r"(//[^/@:]*):[^/@]*@")


def without_secret(url: str) -> str:
    """Leave out the passwords of a URL."""
    return _SECRET.sub(r"\1:...@", url)
