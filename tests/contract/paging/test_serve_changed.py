"""What a giver says of an array that was changed after the switch, or that it cannot read."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import pagemove
from pagemove._native.pager import Taken
from pagemove.stores.handed import HandedStore, unit_for
from support import child
from support.handing import HERE, WORDS, made

pytestmark = pytest.mark.needs("paging")

NUMBERS = np.arange(1, WORDS + 1)


@contextmanager
def _taking(array: np.ndarray, where: object = HERE) -> Iterator[HandedStore]:
    """Hand an array over to a store that brings only what it is asked for."""
    with (
        pagemove.serve(array, where, store_timeout=2) as served,  # type: ignore[arg-type]
        HandedStore(served.url, store_timeout=2) as store,
    ):
        store._quiet = True
        yield store


def _word(store: HandedStore, number: int) -> int:
    found = np.zeros(1, np.int64)
    store.read_into(8 * number, found)
    return int(found[0])


def _changed_before_it_is_read(folder: Path, unix: bool) -> None:
    array = made(folder)
    view = array[-1:]
    with _taking(array, folder / "socket" if unix else HERE) as store:
        store.write(0, bytes(unit_for(array.nbytes)))  # the owner, who has read nothing
        view[0] = 0
        with pytest.raises(pagemove.StoreError, match="written here"):
            _word(store, WORDS - 1)


@pytest.mark.parametrize("unix", [False, True])
def test_a_change_is_said_by_a_giver_that_has_pinned_nothing(tmp_path: Path, unix: bool) -> None:
    child(_changed_before_it_is_read, tmp_path, unix)


@pytest.mark.parametrize("unix", [False, True])
def test_a_change_leaves_the_pins_of_others(tmp_path: Path, unix: bool) -> None:
    array = made(tmp_path)
    region = pagemove.region_of(array)
    view, last = array[-1:], array[-100:]
    with _taking(array, tmp_path / "socket" if unix else HERE) as store:
        assert _word(store, 0) == 1
        view[0] = 0
        with pagemove.pinned(last):
            pinned = region.stats().pinned_nbytes
            for _ in range(3):
                with pytest.raises(pagemove.StoreError, match="written here"):
                    _word(store, WORDS - 1)
            assert region.stats().pinned_nbytes == pinned > 0
        assert region.stats().pinned_nbytes == 0


@pytest.mark.parametrize("word", [0, 7])
def test_compressed_memory_of_one_word_is_handed_over(word: int) -> None:
    memory = pagemove.PagedMemory(nbytes=8 * WORDS, resident_limit="512KiB")
    memory._forgettable = True
    array = memory.asarray(np.int64)
    if word:
        array[:] = word
    with _taking(array) as store:
        for at in range(0, WORDS, WORDS // 16):
            assert _word(store, at) == word
        assert memory.stats().dirty_nbytes == 0


def test_a_guess_that_there_will_be_stores_is_no_change() -> None:
    memory = pagemove.PagedMemory(nbytes=64 << 20, resident_limit="8MiB")
    memory._forgettable = True
    array = memory.asarray(np.int64)
    random, step = np.random.default_rng(0), 1 << 13
    half = len(array) // 2
    for at in range(0, len(array), step):
        array[at : at + step] = random.integers(0, 1 << 60, step)
    memory.evict()
    for at in range(0, half, step):
        array[at : at + step] += 1
    with _taking(array) as store:
        _word(store, len(array) - 1)
        for at in range(half, half + 64 * step, step):
            assert array[at] > 0
        assert memory.stats().dirty_nbytes == 0
        assert _word(store, 0) == array[0]


def test_one_array_of_many_that_can_be_written_is_not_handed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=NUMBERS, y=NUMBERS)
    with pagemove.open_arrays(path, mode="c") as arrays:
        x = arrays["x"]
        with _taking(x) as store:
            y = arrays["y"]  # in the same region, and writeable
            with pytest.raises(pagemove.StoreError, match="open_array"):
                _word(store, 0)
        with pytest.raises(ValueError, match="has a region of its own"):
            pagemove.serve(x, HERE)
        assert isinstance(y, pagemove.PagedArray)
        y.close()
        with _taking(x) as store:
            assert _word(store, 0) == 1
    with pagemove.open_arrays(path) as arrays:
        x, y = arrays["x"], arrays["y"]
        with _taking(x) as store:
            assert _word(store, 0) == 1
    with _taking(pagemove.open_array(f"{path}#x", mode="c")) as store:
        assert _word(store, 0) == 1


def _without_room_to_pin(folder: Path) -> None:
    path = folder / "it"
    NUMBERS.tofile(path)
    array = pagemove.open_array(
        path, dtype="i8", mode="r+", resident_limit="1MiB", store_timeout=0.5
    )
    region = pagemove.region_of(array)
    with _taking(array) as store:
        assert _word(store, 0) == 1
        with pagemove.pinned(array[: region.pinnable // 8]):
            assert _word(store, WORDS * 3 // 4) == WORDS * 3 // 4 + 1
            os.truncate(path, 4 * WORDS)
            with pytest.raises(pagemove.StoreError, match="it cannot read it"):
                _word(store, WORDS - 1)
        os.truncate(path, 8 * WORDS)


def test_a_giver_without_room_to_pin_gets_no_signal(tmp_path: Path) -> None:
    child(_without_room_to_pin, tmp_path, deadline=40)


def _at_the_limit_of_descriptors(url: str) -> int:
    with HandedStore(url, store_timeout=2) as store:
        store._quiet = True
        store._begun("read", 0)
        free = os.open("/dev/null", os.O_RDONLY)
        os.close(free)
        # For the connection, and for nothing else.
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, free + 1))
        return _word(store, WORDS - 1)


def test_a_taker_at_its_limit_of_descriptors_reads(tmp_path: Path) -> None:
    with pagemove.serve(made(tmp_path), tmp_path / "socket") as served:
        assert child(_at_the_limit_of_descriptors, served.url) == WORDS


def _out_of_memory(folder: Path) -> None:
    array = made(folder)
    with _taking(array) as store:
        taking = store.taking()
        assert taking is not None
        taking = (taking[0], bytes(256 << 20), *taking[2:])
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, ((pages << 12) + (128 << 20), -1))
        before = os.fstat(0)
        with pytest.raises(OSError, match=os.strerror(errno.ENOMEM)):
            Taken(taking, store.nbytes)
        assert os.fstat(0) == before


def test_without_memory_descriptor_0_stays_open(tmp_path: Path) -> None:
    child(_out_of_memory, tmp_path)


def _uses(taken: Taken) -> list[Callable[[], object]]:
    return [
        lambda: taken.read_into(0, bytearray(8)),
        lambda: taken.write(0, bytes(8)),
        taken.flush,
        taken.stats,
        taken.bits,
        taken.go_on,
        taken.stop,
        taken.forget,
    ]


def _after_it_was_forgotten(folder: Path) -> None:
    with _taking(made(folder)) as store:
        unopened = Taken.__new__(Taken)
        taking = store.taking()
        assert taking is not None
        forgotten = Taken(taking, store.nbytes)
        forgotten.read_into(0, bytearray())
        forgotten.write(0, b"")
        forgotten.forget()
        for use in [*_uses(unopened), *_uses(forgotten)]:
            with pytest.raises(ValueError, match="not open"):
                use()


def test_what_is_not_open_is_said_to_be(tmp_path: Path) -> None:
    child(_after_it_was_forgotten, tmp_path)
