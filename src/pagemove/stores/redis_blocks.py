"""The blocks of an array in Redis: read, written, counted, made durable, deleted."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pagemove.errors import StoreError
from pagemove.stores import ranges
from pagemove.stores import redis_layout as keys
from pagemove.stores.redis_client import Client, Command
from pagemove.stores.redis_direct import FILLED
from pagemove.stores.redis_lease import gone

_GROUPS_AT_ONCE = 2
_DELETED_AT_ONCE = 1000


class Fenced(Exception):  # noqa: N818 (a turn of events, not yet an error to be told)
    """Another writer's epoch is on a fence."""


class Blocks:
    """The blocks of one array, over one connection to its servers.

    Parameters
    ----------
    client : Client
        To the servers.
    layout : Layout
        Where the blocks are.
    name : str
        Of the store, for messages.
    """

    def __init__(self, client: Client, layout: keys.Layout, name: str) -> None:
        self._client = client
        self._layout = layout
        self._name = name

    def batches(self, start: int, length: int) -> Iterator[list[ranges.Piece]]:
        """Cut a range into blocks, and bring together what goes in one round trip."""
        batch: list[ranges.Piece] = []
        runs: set[int] = set()
        for piece in ranges.pieces(start, length, self._layout.block_size):
            run = piece.block // self._layout.run
            if run not in runs and len(runs) == _GROUPS_AT_ONCE:
                yield batch
                batch, runs = [], set()
            runs.add(run)
            batch.append(piece)
        if batch:
            yield batch

    def prepare(self, epoch: int) -> None:
        """Make bitmaps and fences of a new array."""
        layout = self._layout
        prepared = []
        for group in range(layout.groups):
            two = (layout.written(group), layout.fence(group))
            words = ("EVAL", keys.PREPARE, 2, *two, layout.last_bit, epoch)
            prepared.append(Command(two[0], words))
        self._client.run(prepared)

    def raise_fences(self, epoch: int) -> dict[int, int]:
        """Let nobody with a lesser epoch write any more; give how many writes there were."""
        return self._fenced(range(self._layout.groups), epoch, [])

    def read(
        self, pieces: list[ranges.Piece], view: memoryview, least: Mapping[int, int] | None
    ) -> None:
        """Fill parts of a buffer with parts of blocks.

        Parameters
        ----------
        pieces : list of Piece
            As `batches` gives them.
        view : memoryview
            The buffer.
        least : mapping of int to int, optional
            By group: how many writes there must have been, if the reader knows.
        """
        layout, shares = self._layout, list(self._by_group(pieces).items())
        commands = []
        for group, share in shares:
            names = [layout.block_key(piece.block) for piece in share]
            targets = tuple(self._target(piece, view) for piece in share)
            commands.append(Command(names[0], ("MGET", *names), targets))
            if least:
                fence = layout.fence(group)
                commands.append(Command(fence, ("HGET", fence, "writes"), (None,)))
        answers = iter(self._client.run(commands))
        for group, share in shares:
            values, offset = next(answers), share[0].block * layout.block_size
            if least:
                writes = next(answers)
                if writes is None:
                    raise gone(self._name, "read", offset)
                if int(writes) < least[group]:
                    raise self._rolled_back("read", offset)
            if None in values:
                values = self._looked(group, share, values)
            for piece, value in zip(share, values, strict=True):
                self._fill(piece, value, view)

    def write(
        self, pieces: list[ranges.Piece], view: memoryview, epoch: int, least: Mapping[int, int]
    ) -> dict[int, int]:
        """Write parts of a buffer; give by group how many writes there are now.

        Raises
        ------
        Fenced
            Another has begun to write. Nothing was written to that group.
        """
        layout, shares = self._layout, self._by_group(pieces)
        commands = []
        for group, share in shares.items():
            names = [layout.fence(group), layout.written(group)]
            values: list[Any] = []
            for piece in share:
                names.append(layout.block_key(piece.block))
                data = self._whole(piece, view[piece.at : piece.at + piece.length], least)
                values += [layout.bit(piece.block), b"" if ranges.is_zero(data) else data]
            words = ("EVAL", keys.WRITE, len(names), *names, epoch, least[group], *values)
            commands.append(Command(names[0], words))
        answers = self._client.run(commands)
        return {
            group: self._accepted(answer, "write", share[0].block * layout.block_size)
            for (group, share), answer in zip(shares.items(), answers, strict=True)
        }

    def settle(
        self,
        groups: Iterable[int],
        epoch: int,
        least: Mapping[int, int],
        *,
        replicas: int,
        fsync: bool,
        seconds: float,
    ) -> None:
        """Return when all writes to these groups are there, and as durable as they shall be."""
        waits = fsync and self._waits_for_log()
        fences = {self._layout.fence(group): group for group in groups}
        commands = [
            Command(share[0], words)
            for share in self._client.by_node(list(fences))
            for words in _waits(replicas, waits, int(seconds * 1000))
        ]
        counts = self._fenced(fences.values(), epoch, commands)
        for group, count in counts.items():
            if count < least[group]:
                raise self._rolled_back("flush", None)

    def delete(self) -> None:
        """Delete all blocks, bitmaps and fences."""
        layout = self._layout
        names = [layout.block_key(block) for block in range(layout.blocks)]
        for group in range(layout.groups):
            names += [layout.written(group), layout.fence(group)]
        for first in range(0, len(names), _DELETED_AT_ONCE):
            some = names[first : first + _DELETED_AT_ONCE]
            self._client.run([Command(name, ("UNLINK", name)) for name in some])

    def _waits_for_log(self) -> bool:
        """Tell whether the log has to be waited for; StoreError where it cannot be relied on.

        A server that is older than WAITAOF can sync its log before each answer.
        """
        log = self._client.log()
        if not (log.waits or log.always):
            self._fail(
                f"the server {log.why}; set appendonly yes and appendfsync always, or open the "
                "array without fsync=True"
            )
        return log.waits

    def _fenced(self, groups: Iterable[int], epoch: int, waits: list[Command]) -> dict[int, int]:
        """Put an epoch on fences, wait for that and all before it; give the numbers of writes.

        Replication and the log are one sequence a server: who waits for the last write there, on
        the connection that made it, has waited for all before it.
        """
        fences = {group: self._layout.fence(group) for group in groups}
        commands = [
            Command(fence, ("EVAL", keys.FENCE, 1, fence, epoch)) for fence in fences.values()
        ]
        answers = self._client.run([*commands, *waits])
        for command, answer in zip(waits, answers[len(commands) :], strict=True):
            self._check_wait(command.words, answer)
        return {
            group: self._accepted(answer, "write", None)
            for group, answer in zip(fences, answers, strict=False)
        }

    def _check_wait(self, words: tuple[Any, ...], answer: Any) -> None:
        if words[0] == "WAIT" and int(answer) < words[1]:
            self._fail(
                f"{int(answer)} of {words[1]} replicas have it; see that they run and keep up"
            )
        if words[0] == "WAITAOF" and int(answer[0]) < 1:
            self._fail("the server's log was not synced in time")

    def _fail(self, why: str) -> None:
        raise StoreError(
            errno.EIO,
            f"cannot make durable {self._name}: {why}",
            store=self._name,
            operation="flush",
        )

    def _accepted(self, answer: list[Any], operation: str, offset: int | None) -> int:
        """Give the number of writes that a script answers, or raise what else it says."""
        if answer[0] == b"ok":
            return int(answer[1])
        if answer[0] == b"fenced":
            raise Fenced
        if answer[0] == b"lost":
            raise self._rolled_back(operation, offset)
        raise gone(self._name, operation, offset)

    def _rolled_back(self, operation: str, offset: int | None) -> StoreError:
        return StoreError(
            errno.ESTALE,
            f"cannot {operation} {self._name}: the server has lost writes that it had acknowledged "
            "(a failover, or a start from an older snapshot); store the array anew, and see "
            "replicas and fsync",
            store=self._name,
            operation=operation,
            offset=offset,
        )

    def _looked(self, group: int, share: list[ranges.Piece], values: list[Any]) -> list[Any]:
        """Find out of missing blocks whether they were ever written; give all values."""
        layout = self._layout
        missing = [number for number, value in enumerate(values) if value is None]
        blocks = [share[number].block for number in missing]
        names = [layout.written(group), *map(layout.block_key, blocks)]
        words = ("EVAL", keys.LOOK, len(names), *names, *map(layout.bit, blocks))
        found = self._client.run([Command(names[0], words)])[0]
        for place, number in enumerate(missing):
            value = 1 if found is None else found[place]
            if value == 1:
                raise gone(self._name, "read", share[number].block * layout.block_size)
            values[number] = value or b""
        return values

    def _target(self, piece: ranges.Piece, view: memoryview) -> memoryview | None:
        """Give where a block can be put as it comes: where all of it is wanted."""
        layout = self._layout
        whole = ranges.length_of(piece.block, layout.block_size, layout.nbytes)
        return view[piece.at : piece.at + piece.length] if piece.length == whole else None

    def _fill(self, piece: ranges.Piece, value: bytes, view: memoryview) -> None:
        if value is FILLED:
            return
        layout = self._layout
        whole = ranges.length_of(piece.block, layout.block_size, layout.nbytes)
        part = view[piece.at : piece.at + piece.length]
        if not value:
            part[:] = bytes(piece.length)
        elif len(value) == whole:
            part[:] = memoryview(value)[piece.start : piece.start + piece.length]
        else:
            raise StoreError(
                errno.EIO,
                f"cannot read {self._name}: block {piece.block} has {len(value)} bytes, not "
                f"{whole}: something else than pagemove has written it",
                store=self._name,
                operation="read",
                offset=piece.block * layout.block_size,
            )

    def _whole(self, piece: ranges.Piece, part: memoryview, least: Mapping[int, int]) -> memoryview:
        """Give all of a block of which a part is to be written."""
        layout = self._layout
        whole = ranges.length_of(piece.block, layout.block_size, layout.nbytes)
        if piece.length == whole:
            return part
        before = memoryview(bytearray(whole))
        self.read([ranges.Piece(piece.block, 0, 0, whole)], before, least)
        before[piece.start : piece.start + piece.length] = part
        return before

    def _by_group(self, pieces: list[ranges.Piece]) -> dict[int, list[ranges.Piece]]:
        shares: dict[int, list[ranges.Piece]] = {}
        for piece in pieces:
            shares.setdefault(self._layout.group(piece.block), []).append(piece)
        return shares


def _waits(replicas: int, fsync: bool, milliseconds: int) -> Iterator[tuple[Any, ...]]:
    if replicas:
        yield ("WAIT", replicas, milliseconds)
    if fsync:
        yield ("WAITAOF", 1, 0, milliseconds)
