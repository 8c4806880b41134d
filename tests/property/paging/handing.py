"""An array that is handed over through a network that fails, beside what both sides should have."""

from __future__ import annotations

import contextlib
import errno
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import pagemove
from pagemove.stores.handed import HandedStore
from support.network import Network

UNIT = 65536
NBYTES = 5 * UNIT + 8000
WORDS = NBYTES // 8
_PLACES = st.integers(0, WORDS - 1)
# One word, parts of units, and some as a whole.
_LENGTHS = st.sampled_from([1, 100, UNIT // 8, 3 * UNIT // 8, WORDS])
_VALUES = st.integers(1, 1 << 60)
# Within the greeting, within an answer, and behind many.
_SHARES = st.lists(
    st.one_of(st.integers(0, 400), st.integers(400, 70_000), st.integers(70_000, 500_000)),
    max_size=6,
)


class HandoverMachine(RuleBasedStateMachine):
    """The model: what the giver has, and what the taker has written over it."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.store: HandedStore | None = None

    @initialize(
        compressed=st.booleans(),
        secret=st.sampled_from([None, "s"]),
        seed=st.integers(0, 99),
        unix=st.booleans(),
    )
    def start(self, compressed: bool, secret: str | None, seed: int, unix: bool) -> None:
        """Make an array, and serve it."""
        self.unix = unix
        self.folder = folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        how = {"resident_limit": "256KiB", "block_size": 4096}
        if compressed:
            memory = pagemove.PagedMemory(nbytes=NBYTES, **how)
            self.numbers = memory.asarray(np.int64)
        else:
            self.numbers = pagemove.create_array(folder / "it", WORDS, np.int64, **how)
        self.secret, self.seed = secret, seed
        self.given = np.arange(1, WORDS + 1)
        self.numbers[:] = self.given
        self.frozen = False
        self.serve()

    def serve(self) -> None:
        """Offer it, to who has nothing of it."""
        where = self.folder / "socket" if self.unix else ("127.0.0.1", 0)
        self.served = pagemove.serve(self.numbers, where, secret=self.secret, store_timeout=20)
        if self.unix:
            self.network = Network(self.folder / "socket", self.seed)
            self.url = f"pagemove+unix://{self.network.path}"
        else:
            self.network = Network(int(self.served.url.rpartition(":")[2]), self.seed)
            self.url = f"pagemove://127.0.0.1:{self.network.port}"
        self.network.longest_delay = 0.002
        self.store, self.owns = None, False
        self.written = np.zeros(WORDS, bool)
        self.over = np.zeros(WORDS, np.int64)

    # The giver.

    @rule(at=_PLACES, count=_LENGTHS, value=_VALUES)
    def giver_writes(self, at: int, count: int, value: int) -> None:
        """Until the switch; then it is refused."""
        try:
            self.numbers[at : at + count] = value
        except ValueError:
            assert self.frozen or self.store is not None
        else:
            assert not self.frozen
            assert not self.owns
            self.given[at : at + count] = value

    @precondition(lambda self: self.owns)
    @rule()
    def another_comes(self) -> None:
        """There is one owner."""
        with pytest.raises(pagemove.StoreError) as caught:
            HandedStore(self.served.url, secret=self.secret, store_timeout=20)
        assert caught.value.errno == errno.EBUSY

    # The taker.

    @precondition(lambda self: self.store is None)
    @rule()
    def taker_comes(self) -> None:
        """It looks what there is; nothing is taken by that."""
        self.store = self.until_it_works(
            lambda: HandedStore(self.url, secret=self.secret, backing="memory", store_timeout=20)
        )
        assert self.store.nbytes == NBYTES

    @precondition(lambda self: self.store is not None)
    @rule(at=_PLACES, count=_LENGTHS)
    def taker_reads(self, at: int, count: int) -> None:
        """It has what the giver had at the switch, but for what it has written."""
        found = np.zeros(min(count, WORDS - at), np.int64)
        self.until_it_works(lambda: self.store.read_into(8 * at, found))  # type: ignore[union-attr]
        self.owns = True
        assert np.array_equal(found, self.expected()[at : at + len(found)])

    @precondition(lambda self: self.store is not None)
    @rule(at=_PLACES, count=_LENGTHS, value=_VALUES)
    def taker_writes(self, at: int, count: int, value: int) -> None:
        """It is the owner with the first byte that it reads or writes."""
        values = np.full(min(count, WORDS - at), value)
        self.until_it_works(lambda: self.store.write(8 * at, values))  # type: ignore[union-attr]
        self.owns = True
        self.written[at : at + count] = True
        self.over[at : at + count] = value

    @precondition(lambda self: self.store is not None)
    @rule()
    def taker_dies(self) -> None:
        """All that it had taken is still with the giver, and can be given again."""
        assert self.store is not None
        self.store.close()
        self.end_serving()
        self.serve()

    @precondition(lambda self: self.owns)
    @rule()
    def giver_dies(self) -> None:
        """What has arrived is there, and of the rest nothing is invented."""
        assert self.store is not None
        self.end_serving()
        found = np.zeros(UNIT // 8, np.int64)
        expected = self.expected()
        for at in range(0, WORDS, UNIT // 8):
            part = found[: WORDS - at]
            part[:] = -1
            with contextlib.suppress(pagemove.StoreError):
                self.store.read_into(8 * at, part)
                assert np.array_equal(part, expected[at : at + len(part)])
                continue
            assert (part == -1).all()
        self.store.close()
        self.serve()

    # The network.

    @rule(shares=_SHARES)
    def next_connections_break(self, shares: list[int]) -> None:
        """After so many bytes each."""
        self.network.shares[:] = shares

    @rule()
    def all_connections_break(self) -> None:
        """Now."""
        self.network.lose()

    @rule(number=st.integers(0, 50))
    def an_old_connection_is_repeated(self, number: int) -> None:
        """Nothing comes of it."""
        self.network.repeat(number)

    # What is always so.

    @invariant()
    def giver_has_all(self) -> None:
        """Whatever was sent, and acknowledged."""
        assert np.array_equal(self.numbers, self.given)

    @invariant()
    def what_is_acknowledged_has_arrived(self) -> None:
        """Until it is there it stays with the giver."""
        if self.store is not None and self.store._taken is not None:
            acknowledged = np.frombuffer(self.served._given._giver.acknowledged(), bool)
            bits = np.frombuffer(self.store._taken.bits(), np.uint8)
            here = np.unpackbits(bits, count=len(acknowledged), bitorder="little")
            assert not (acknowledged & (here == 0)).any()

    def teardown(self) -> None:
        """In the end it all comes."""
        try:
            if not hasattr(self, "network"):
                return
            self.network.shares.clear()
            if self.owns:
                assert self.store is not None
                self.taker_reads(0, WORDS)
                self.served.wait(60)
                assert self.served.progress == 1
                self.giver_has_all()
            if self.store is not None:
                self.store.close()
            self.end_serving()
            region = pagemove.region_of(self.numbers)
            del self.numbers, self.served
            region.close()
        finally:
            self.stack.close()

    def expected(self) -> np.ndarray:
        """What the taker should have."""
        return np.where(self.written, self.over, self.given)

    def end_serving(self) -> None:
        """The giver's side ends; its array is read-only if it had an owner."""
        self.network.close()
        self.served.close()
        self.frozen = not self.numbers.flags.writeable
        assert self.frozen or not self.owns

    def until_it_works(self, act):  # type: ignore[no-untyped-def]
        """Do it again while connections break."""
        limit = time.monotonic() + 60
        while True:
            try:
                return act()
            except OSError:
                if time.monotonic() > limit:
                    raise
                time.sleep(0.005)
