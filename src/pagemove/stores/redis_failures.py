"""What an array in Redis says of a writer's place, and of what has gone wrong."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from typing import NamedTuple

from pagemove.errors import StoreError
from pagemove.stores.redis_client import code_of
from pagemove.stores.redis_secrets import scrub


class Fenced(Exception):  # noqa: N818 (an event, not yet an error to report)
    """Another writer is on a fence.

    Attributes
    ----------
    epoch : int
        That writer's, as far as known.
    """

    def __init__(self, epoch: int = 0) -> None:
        super().__init__("another writer is on a fence")
        self.epoch = epoch


class Turn(NamedTuple):
    """What makes a writer's requests known as its own, and puts them in order.

    Attributes
    ----------
    holder : str
        Of the lease.
    epoch : int
        Of the lease.
    numbers : iterator of int
        The numbers of writes to come.
    """

    holder: str
    epoch: int
    numbers: Iterator[int]


class Failures:
    """Makes the exceptions of one store, which has a `_name`."""

    _name: str

    def _rolled_back(self, operation: str, offset: int | None) -> StoreError:
        why = (
            "the server has lost writes that it had acknowledged (a failover, or a start from an "
            "older snapshot); store the array anew, and see replicas and fsync"
        )
        return self._error(errno.ESTALE, operation, offset, why)

    def _nonsense(self, operation: str, offset: int | None) -> StoreError:
        why = "what the server answers is no answer to that; see what is between here and there"
        return self._error(errno.EBADMSG, operation, offset, why)

    def _error(self, code: int, operation: str, offset: int | None, why: str) -> StoreError:
        return failure(self._name, code, operation, offset, why)


def failure(name: str, code: int, operation: str, offset: int | None, why: str) -> StoreError:
    """Make the exception of a store of that name."""
    place = "" if offset is None else f" at byte {offset}"
    return StoreError(
        code,
        f"cannot {operation} {name}{place}: {why}",
        store=name,
        operation=operation,
        offset=offset,
    )


@contextlib.contextmanager
def translated(
    store: object,
    operation: str,
    offset: int | None,
    ask_who: Callable[[], object],
    secrets: Callable[[], list[str]],
) -> Iterator[None]:
    """Make of the client's exceptions those of a store, and let no secret out.

    Parameters
    ----------
    store : object
        Whose repr names it.
    operation : str
        What failed.
    offset : int or None
        Where in the array.
    ask_who : callable
        Raises who writes in this store's place, as far as the server says.
    secrets : callable
        Returns what no message may have in it.
    """
    import redis

    try:
        yield
    except Fenced as error:
        with contextlib.suppress(redis.RedisError):
            ask_who()
        why = "another store has begun to write it"
        raise failure(repr(store), errno.EBUSY, operation, offset, why) from error
    except (redis.RedisError, OSError) as error:
        if isinstance(error, StoreError | FileNotFoundError | FileExistsError):
            raise
        scrub(error, secrets())
        raise failure(repr(store), code_of(error), operation, offset, str(error)) from error
