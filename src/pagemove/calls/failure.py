"""What is wrong with a call, before it is known which call to name."""

from __future__ import annotations

from pagemove.errors import RemapError, remap_error


class Failure(Exception):  # noqa: N818 (never seen by a user: becomes a RemapError)
    """What is wrong, before it is known which call to name."""

    def __init__(self, code: int, address: int | None, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.address = address
        self.text = text

    def as_error(self, call: str, *, moved: int = 0, index: int | None = None) -> RemapError:
        """Make the exception that names the call and how far it got."""
        progress = f" ({moved} bytes were moved before)" if moved else ""
        return remap_error(
            self.code,
            f"{call}: {self.text}{progress}",
            moved=moved,
            index=index,
            address=self.address,
        )
