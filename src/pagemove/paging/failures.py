"""What the pager has noted of a store that failed, as exceptions."""

from __future__ import annotations

import errno
from collections.abc import Container, Iterable
from typing import Literal, NamedTuple, NoReturn, TypeAlias

from pagemove import limits
from pagemove._native.pager import Pager
from pagemove.errors import StoreError, store_error

#: The operations, as the pager numbers them.
OPERATIONS = ("read", "write", "flush")

_REMEDIES = {
    "read": "the block raises SIGBUS on access, and EFAULT from a system call; fix the store, then "
    "call evict() to read the block again",
    "write": "the changes are still in memory: fix the store (space, quota, device), then call "
    "flush() again",
    "flush": "what was written may not be durable: fix the store, then call flush() again, which "
    "writes it again from memory",
}

_REMEDY_OF_GIVER = (
    "the block raises SIGBUS on access, and EFAULT from a system call; do what the note says, then "
    "call evict() to read the block again"
)

Speaker: TypeAlias = Literal["helper", "memory", "giver"]


class Failure(NamedTuple):
    """One operation that failed for good, as the pager notes it.

    Attributes
    ----------
    sequence : int
        Ascending.
    operation : str
        One of `OPERATIONS`.
    offset : int or None
        First byte of the block; None for a flush, and where it is not known.
    errno : int
        0 where the store gave or took less than it should, and of a flush where none can succeed
        any more.
    tries : int
        How often it was tried.
    text : str
        What is said of it; empty for a file.
    speaker : {"helper", "memory", "giver"}
        Who says it: a helper process, with the traceback; compressed memory, what to do; the pager
        itself, of an array that it takes over without a helper.
    """

    sequence: int
    operation: str
    offset: int | None
    errno: int
    tries: int
    text: str = ""
    speaker: Speaker = "helper"

    @classmethod
    def of(
        cls,
        record: tuple[int, int, int, int, int],
        text: str = "",
        speaker: Speaker = "helper",
    ) -> Failure:
        """Make it of the pager's numbers, and of what the store says."""
        sequence, number, offset, code, tries = record
        operation = OPERATIONS[number]
        place = None if operation == "flush" else offset
        return cls(sequence, operation, place, code, tries, text, speaker)

    def concerns(self, operation: str, offsets: Container[int]) -> bool:
        """Return whether it is such an operation, on a block that begins at one of the offsets."""
        return operation == self.operation and self.offset is not None and self.offset in offsets

    def error(self, store: str) -> StoreError:
        """Make the exception."""
        if self.operation == "flush" and not self.errno:
            return StoreError(
                errno.EIO,
                f"cannot make {store} durable: a flush failed after changed blocks had left memory"
                ", so it is unknown whether the store has them; compare the store with the source "
                "of its contents, and write it again from there if they differ (no flush of this "
                "region can find out)",
                store=store,
                operation=self.operation,
            )
        error = store_error(
            self.errno,
            store=store,
            operation=self.operation,
            offset=self.offset,
            tries=self.tries,
            remedy=self._remedy,
        )
        if self.text and self.speaker == "helper":
            error.add_note(f"in the helper process: {self.text}")
        elif self.text and self.speaker == "giver":
            error.add_note(self.text)
        elif self.errno in limits.ALWAYS:
            limits.explain(error)
        return error

    @property
    def _remedy(self) -> str:
        if self.text and self.speaker == "giver" and self.operation == "read":
            return _REMEDY_OF_GIVER
        if not self.text or self.speaker != "memory":
            return _REMEDIES[self.operation]
        if self.operation == "read":
            return self.text
        return f"{self.text}; the changes are still in memory"


def noted(pager: Pager, first: int = 0) -> list[Failure]:
    """List what a pager has noted, from a sequence number on; only the newest are kept."""
    speaker: Speaker = "memory" if pager.compressed else "helper"
    if getattr(getattr(pager, "_store", None), "_is_taken_natively", False):
        speaker = "giver"
    return [
        Failure.of(record, pager.failure_text(record[0]), speaker)
        for record in pager.failures()
        if record[0] >= first
    ]


def next_sequence(pager: Pager) -> int:
    """Return the sequence number that the next failure will have, or a smaller unused one."""
    return max((record[0] + 1 for record in pager.failures()), default=0)


def check_read(pager: Pager, code: int, first: int, offsets: Container[int], store: str) -> None:
    """Raise if a call that read blocks has ended with an errno.

    Parameters
    ----------
    pager : Pager
        That was called.
    code : int
        What it said; 0 is success.
    first : int
        `next_sequence` before the call.
    offsets : container of int
        First bytes of the blocks that it was asked for. One may have failed long ago, and more than
        once.
    store : str
        Name of the store.
    """
    if code:
        reads = [each for each in noted(pager) if each.concerns("read", offsets)]
        newest = {each.offset: each for each in reads if each.sequence >= first}
        throw((newest or {each.offset: each for each in reads}).values(), code, "read", store)


def check_saved(pager: Pager, code: int, first: int, operation: str, store: str) -> None:
    """Raise if a call that wrote blocks has ended with an errno; parameters as of `check_read`."""
    if code:
        writes = [each for each in noted(pager, first) if each.operation != "read"]
        throw(writes, code, operation, store)


def throw_lost(store: str, dirty: int, saved: bool = True) -> NoReturn:
    """Raise that the program has closed the descriptors; `dirty` bytes could not be saved then.

    Without `saved` the store has not made durable what it was given.
    """
    if dirty:
        outcome = f"{dirty} changed bytes could not be saved"
    else:
        outcome = "all changes are saved" if saved else "changes could not be made durable"
    raise StoreError(
        errno.EBADF,
        f"paged memory over {store} is lost: the program has closed the descriptors of this "
        "library, as code that closes all of them does (os.closerange, a daemon at its start); "
        f"{outcome}; open the region after that",
        store=store,
        operation="flush",
        offset=None,
    )


def throw_sealed(store: str) -> NoReturn:
    """Raise that a region is being closed, and what was to be done cannot be."""
    raise ValueError(
        f"paged memory over {store} was closed by PagedArray.close(), which could not save all "
        "changes, or has not ended yet: close it again"
    )


def throw(failures: Iterable[Failure], code: int, operation: str, store: str) -> NoReturn:
    """Raise one `StoreError` of all: the first, with the others as notes.

    Where nothing was noted, `code` and `operation` are all that is known.
    """
    errors = [failure.error(store) for failure in failures]
    errors = errors or [Failure(0, operation, None, code, 1).error(store)]
    for other in errors[1:]:
        errors[0].add_note(f"also: {other.strerror}")
    try:
        raise errors[0]
    finally:
        del errors  # with their traceback they would keep this frame, and its caller's
