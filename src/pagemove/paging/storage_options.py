"""Options of what opens a URL, from a command line: ``KEY=VALUE``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any


def parsed(texts: Iterable[str]) -> dict[str, Any]:
    """Return options by name.

    A value that is JSON is that: ``true``, ``30``, ``{"region_name": "eu"}``; any other is a text.
    Digits that are meant as text are quoted, as JSON has it.

    Parameters
    ----------
    texts : iterable of str
        ``KEY=VALUE`` each.

    Raises
    ------
    ValueError
        One is not of that form, or a key is given twice.
    """
    options: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            # Not the text: it may be half of a secret.
            raise ValueError("--storage-option must be KEY=VALUE, such as anon=true")
        if key in options:
            raise ValueError(f"--storage-option {key} was given twice")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options
