"""The blocks of an array in Redis: read, written, counted, made durable, deleted."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pagemove.errors import StoreError
from pagemove.stores import ranges
from pagemove.stores import redis_layout as keys
from pagemove.stores.redis_client import Client
from pagemove.stores.redis_direct import HEAD, Command, Filled
from pagemove.stores.redis_failures import Failures, Fenced, Turn
from pagemove.stores.redis_lease import gone

_GROUPS_AT_ONCE = 2
_DELETED_AT_ONCE = 1000
_MOST_TURNS = 5


class Blocks(Failures):
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

    def prepare(self, holder: str, epoch: int) -> None:
        """Make bitmaps and fences of a new array."""
        layout = self._layout
        prepared = []
        for group in range(layout.groups):
            two = (layout.written(group), layout.fence(group))
            words = ("EVAL", keys.PREPARE, 2, *two, layout.last_bit, holder, epoch)
            prepared.append(Command(two[0], words))
        self._client.run(prepared)

    def raise_fences(self, holder: str, epoch: int) -> dict[int, int]:
        """Refuse writers with a lesser epoch from now on; return how many writes there were."""
        return self._fenced(range(self._layout.groups), holder, epoch, [])

    def read(
        self,
        pieces: list[ranges.Piece],
        view: memoryview,
        least: Mapping[int, int],
        holder: str = "",
    ) -> None:
        """Fill parts of a buffer with parts of blocks.

        Parameters
        ----------
        pieces : list of Piece
            As `batches` returns them.
        view : memoryview
            The buffer.
        least : mapping of int to int
            By group: how many writes there must have been, if the reader knows.
        holder : str
            Of the lease, if the reader is to be the writer.

        Raises
        ------
        Fenced
            Another has begun to write.
        """
        layout, shares = self._layout, list(self._by_group(pieces).items())
        commands = []
        for group, share in shares:
            names = [layout.block_key(piece.block) for piece in share]
            targets = tuple(self._target(piece, view) for piece in share)
            commands.append(Command(names[0], ("MGET", *names), targets, self._longest))
            if least:
                fence = layout.fence(group)
                commands.append(Command(fence, ("HMGET", fence, "holder", "writes")))
        answers = iter(self._client.run(commands))
        for group, share in shares:
            values, offset = next(answers), share[0].block * layout.block_size
            if least:
                self._check_fence(next(answers), holder, least[group], offset)
            if not isinstance(values, list) or len(values) != len(share):
                raise self._nonsense("read", offset)
            if any(isinstance(value, int) for value in values):  # of which LOOK makes something
                raise self._nonsense("read", offset)
            if None in values:
                values = self._looked(group, share, values)
            for piece, value in zip(share, values, strict=True):
                self._fill(piece, value, view)

    def _check_fence(self, fence: Any, holder: str, least: int, offset: int) -> None:
        if fence == [None, None]:
            raise gone(self._name, "read", offset)
        try:
            found, writes = fence[0].decode(), int(fence[1])
        except (AttributeError, IndexError, TypeError, ValueError):
            raise self._nonsense("read", offset) from None
        if holder and found != holder:
            raise Fenced
        if writes < least:
            raise self._rolled_back("read", offset)

    def write(
        self, pieces: list[ranges.Piece], view: memoryview, turn: Turn, least: Mapping[int, int]
    ) -> dict[int, int]:
        """Write parts of a buffer; return by group how many writes there are now.

        Nobody else may write these blocks with the same turn until it has returned or raised.

        Raises
        ------
        Fenced
            Another has begun to write. Nothing was written to that group.
        """
        layout, shares = self._layout, self._by_group(pieces)
        data = {
            piece: self._whole(piece, view[piece.at : piece.at + piece.length], least, turn.holder)
            for share in shares.values()
            for piece in share
        }
        counts: dict[int, int] = {}
        for _ in range(_MOST_TURNS):
            number = next(turn.numbers)
            commands = []
            for group, share in shares.items():
                names = [layout.fence(group), layout.written(group)]
                values: list[Any] = []
                for piece in share:
                    names.append(layout.block_key(piece.block))
                    head = layout.head(piece.block, turn.epoch, number)
                    zero = ranges.is_zero(data[piece])
                    values += [
                        layout.bit(piece.block),
                        head if zero else b"".join((head, data[piece])),
                    ]
                given = (turn.holder, turn.epoch, number, least[group], layout.bitmap_nbytes)
                words = ("EVAL", keys.WRITE, len(names), *names, *given, *values)
                commands.append(Command(names[0], words))
            late = 0
            for (group, share), answer in zip(
                shares.items(), self._client.run(commands), strict=True
            ):
                offset = share[0].block * layout.block_size
                counts[group], left_out = self._accepted(answer, "write", offset)
                late += left_out
            if not late:
                return counts
            # Of a block that the server has lost nothing says how new it was, only that this write
            # is older than others in its group. It is the newest, so its number has to be.
        raise self._error(
            errno.EIO, "write", pieces[0].block * layout.block_size, "something newer is there"
        )

    def settle(
        self,
        turn: Turn | None,
        least: Mapping[int, int],
        *,
        replicas: int,
        fsync: bool,
        seconds: float,
    ) -> None:
        """Return when all writes ever made are there, and as durable as they shall be.

        By any writer: an earlier process may have died before a flush.

        Parameters
        ----------
        turn : Turn or None
            Of the writer; None: of one that was it.
        least : mapping of int to int
            By group: how many writes there must have been.
        replicas, fsync, seconds : int, bool, float
            What is waited for, and how long.
        """
        groups = [group for group, count in least.items() if count]
        waits = fsync and self._waits_for_log()
        fences = [self._layout.fence(group) for group in groups]
        commands = [
            Command(share[0], words)
            for share in self._client.by_node(fences)
            for words in _waits(replicas, waits, int(seconds * 1000))
        ]
        holder, epoch = (turn.holder, turn.epoch) if turn else ("", 0)
        for group, count in self._fenced(groups, holder, epoch, commands).items():
            if count < least[group]:
                raise self._rolled_back("flush", None)

    def delete(self) -> None:
        """Delete all blocks, bitmaps and fences."""
        layout = self._layout
        names = itertools.chain(
            (layout.block_key(block) for block in range(layout.blocks)),
            map(layout.written, range(layout.groups)),
            map(layout.fence, range(layout.groups)),
        )
        while some := list(itertools.islice(names, _DELETED_AT_ONCE)):
            self._client.run([Command(name, ("UNLINK", name)) for name in some])

    def _waits_for_log(self) -> bool:
        """Return whether the log has to be waited for; StoreError where it cannot be relied on.

        A server that is older than WAITAOF can sync its log before each answer.
        """
        log = self._client.log()
        if not (log.waits or log.always):
            self._fail(
                f"the server {log.why}; set appendonly yes and appendfsync always, or open the "
                "array without fsync=True"
            )
        return log.waits

    def _fenced(
        self, groups: Iterable[int], holder: str, epoch: int, waits: list[Command]
    ) -> dict[int, int]:
        """Put a holder on fences, wait for that and all before it; return the numbers of writes.

        Replication and the log are one sequence a server: who waits for the last write there, on
        the connection that made it, has waited for all before it.
        """
        fences = {group: self._layout.fence(group) for group in groups}
        commands = [
            Command(fence, ("EVAL", keys.FENCE, 1, fence, holder, epoch))
            for fence in fences.values()
        ]
        if not commands:
            return {}
        answers = self._client.run([*commands, *waits])
        for command, answer in zip(waits, answers[len(commands) :], strict=True):
            self._check_wait(command.words, answer)
        return {
            group: self._accepted(answer, "flush", None)[0]
            for group, answer in zip(fences, answers, strict=False)
        }

    def _check_wait(self, words: tuple[Any, ...], answer: Any) -> None:
        if words[0] == "WAITAOF" and isinstance(answer, list) and answer:
            answer = answer[0]
        if not isinstance(answer, int):
            raise self._nonsense("flush", None)
        if words[0] == "WAIT" and answer < words[1]:
            self._fail(f"{answer} of {words[1]} replicas have it; see that they run and keep up")
        if words[0] == "WAITAOF" and answer < 1:
            self._fail("the server's log was not synced in time")

    def _fail(self, why: str) -> None:
        raise StoreError(
            errno.EIO,
            f"cannot make durable {self._name}: {why}",
            store=self._name,
            operation="flush",
        )

    def _accepted(self, answer: Any, operation: str, offset: int | None) -> tuple[int, int]:
        """Return the numbers that a script answers, or raise what else it says."""
        word, *rest = answer if isinstance(answer, list) and answer else [None]
        if word == b"gone":
            raise gone(self._name, operation, offset)
        numbers = [number for number in rest if isinstance(number, int)]
        if not numbers or len(numbers) < len(rest):
            raise self._nonsense(operation, offset)
        if word == b"ok":
            return numbers[0], sum(numbers[1:])
        if word == b"fenced":
            raise Fenced(numbers[0])
        if word == b"lost":
            raise self._rolled_back(operation, offset)
        raise self._nonsense(operation, offset)

    def _looked(self, group: int, share: list[ranges.Piece], values: list[Any]) -> list[Any]:
        """Find out of missing blocks whether they were ever written; return all values."""
        layout = self._layout
        missing = [number for number, value in enumerate(values) if value is None]
        blocks = [share[number].block for number in missing]
        names = [layout.written(group), *map(layout.block_key, blocks)]
        given = (layout.bitmap_nbytes, *map(layout.bit, blocks))
        words = ("EVAL", keys.LOOK, len(names), *names, *given)
        found = self._client.run([Command(names[0], words, (), self._longest)])[0]
        if found is not None and (not isinstance(found, list) or len(found) != len(blocks)):
            raise self._nonsense("read", blocks[0] * layout.block_size)
        for place, number in enumerate(missing):
            value = 1 if found is None else found[place]
            if value == 1:
                raise gone(self._name, "read", share[number].block * layout.block_size)
            values[number] = value
        return values

    @property
    def _longest(self) -> int:
        return HEAD + self._layout.block_size

    def _target(self, piece: ranges.Piece, view: memoryview) -> memoryview | None:
        """Return where a block can be put as it comes: where all of it is wanted."""
        layout = self._layout
        whole = ranges.length_of(piece.block, layout.block_size, layout.nbytes)
        return view[piece.at : piece.at + piece.length] if piece.length == whole else None

    def _fill(self, piece: ranges.Piece, value: Any, view: memoryview) -> None:
        layout = self._layout
        whole = ranges.length_of(piece.block, layout.block_size, layout.nbytes)
        part = view[piece.at : piece.at + piece.length]
        offset = piece.block * layout.block_size
        if value == 0 and isinstance(value, int):  # never written
            part[:] = bytes(piece.length)
            return
        if isinstance(value, Filled):
            head, length = value.head, whole
        elif isinstance(value, bytes):
            head, length = value[:HEAD], len(value) - HEAD
        else:
            raise self._nonsense("read", offset)
        if length not in (0, whole):
            raise self._error(
                errno.EIO,
                "read",
                offset,
                f"block {piece.block} has {len(value)} bytes, not {HEAD + whole}: something else "
                "than pagemove has written it",
            )
        if not layout.is_of(piece.block, head):
            raise self._error(
                errno.EBADMSG,
                "read",
                offset,
                f"what was sent for block {piece.block} is not that block: something else than "
                "pagemove has written it, or something on the way confuses answers",
            )
        if not length:
            part[:] = bytes(piece.length)
        elif isinstance(value, bytes):
            start = HEAD + piece.start
            part[:] = memoryview(value)[start : start + piece.length]

    def _whole(
        self, piece: ranges.Piece, part: memoryview, least: Mapping[int, int], holder: str
    ) -> memoryview:
        """Return all of a block of which a part is to be written."""
        layout = self._layout
        whole = ranges.length_of(piece.block, layout.block_size, layout.nbytes)
        if piece.length == whole:
            return part
        before = memoryview(bytearray(whole))
        self.read([ranges.Piece(piece.block, 0, 0, whole)], before, least, holder)
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
