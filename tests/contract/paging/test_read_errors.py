"""Point 3: what cannot be read is tried again, then poisoned and told. It never becomes data."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

import pagemove
from pagemove import PAGE_SIZE, StoreError, lowlevel
from support import ChildFailed, child, together
from support.paging import (
    BLOCKS,
    KIB,
    MODES,
    RANDOM,
    SEQUENTIAL,
    Fault,
    Struck,
    Worker,
    expected,
    load,
    make_file,
    paged,
    store,
    words,
    wrong_words,
)

pytestmark = pytest.mark.needs("paging")

_BLOCK = 64 * KIB
_COUNT = 16
_NBYTES = _COUNT * _BLOCK
_TIMEOUT = 0.15

FOR_EVER = {
    "EIO": [Fault("read", count=0, errno=errno.EIO)],
    "short": [Fault("read", count=0, short=1)],
    "nothing at all": [Fault("read", count=0, short=2**40)],
}
PASSING = {
    "EIO once": [Fault("read", count=1, errno=errno.EIO)],
    "EIO several times": [Fault("read", count=4, errno=errno.EIO)],
    "EINTR": [Fault("read", count=2, errno=errno.EINTR)],
    "EAGAIN": [Fault("read", count=2, errno=errno.EAGAIN)],
    "short by a byte": [Fault("read", count=3, short=1)],
    "short by a page": [Fault("read", count=3, short=4096)],
    "nothing at all": [Fault("read", count=3, short=2**40)],
    "short, then EIO, then late": [
        Fault("read", first=0, count=1, short=100),
        Fault("read", first=1, count=2, errno=errno.EIO),
        Fault("read", first=3, count=1, delay=0.05),
    ],
    "every second call": [
        Fault("read", first=call, count=1, errno=errno.EIO) for call in range(0, 400, 2)
    ],
    "late": [Fault("read", count=3, delay=0.05)],
}


def _passing(path: Path, mode: str, faults: list[Fault], block: int) -> tuple[str | None, int, int]:
    how = {"resident_limit": 6 * block, "block_size": block, "store_timeout": 10.0}
    with paged(path, mode, faults=faults, **how) as memory:
        wrong = wrong_words(words(memory)) or wrong_words(words(memory))
        stats = memory.stats()
        return wrong, stats.errors, stats.retries


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_not_noticed(file, mode, name):
    wrong, errors, retries = child(_passing, file(_NBYTES), mode, PASSING[name], _BLOCK)
    assert wrong is None
    assert errors == 0
    assert retries > 0 or name == "late"


@pytest.mark.parametrize("block", BLOCKS)
def test_what_passes_is_not_noticed_with_any_block(file, block):
    name = "short, then EIO, then late"
    assert child(_passing, file(12 * block), "r+", PASSING[name], block)[:2] == (None, 0)


def _struck(path: Path, mode: str, faults: list[Fault], writing: bool) -> tuple:
    with paged(path, mode, faults=faults, block_size=_BLOCK, store_timeout=_TIMEOUT) as memory:
        begin = time.monotonic()
        address = memory.address + 3 * _BLOCK + 8200
        with pytest.raises(Struck) as caught:
            store(address, b"12345678") if writing else load(address)
        stats = memory.stats()
        offset = caught.value.address - memory.address
        last = stats.failures[-1]
        return (
            caught.value.signal,
            offset,
            time.monotonic() - begin,
            stats.errors,
            (last.store, last.offset, last.operation),
        )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FOR_EVER)
@pytest.mark.parametrize("writing", [False, True], ids=["reading", "writing"])
def test_a_thread_gets_sigbus_and_stderr_says_why(file, mode, name, writing, capfd):
    if mode == "r" and writing:
        pytest.skip("nothing is written in mode r")
    path = file(_NBYTES)
    number, offset, took, errors, last = child(_struck, path, mode, FOR_EVER[name], writing)
    assert number == signal.SIGBUS
    assert 3 * _BLOCK <= offset < 4 * _BLOCK
    assert took >= 0.9 * _TIMEOUT
    assert took < 5
    assert errors >= 1
    assert last == (str(path), 3 * _BLOCK, "read")
    text = capfd.readouterr().err
    assert str(path) in text
    assert str(3 * _BLOCK) in text
    assert ("Input/output error" if name == "EIO" else "fewer bytes") in text or "short" in text


def test_a_program_that_does_not_expect_it_dies_of_sigbus(file):
    def touch(path: Path) -> int:
        with paged(path, "r", faults=FOR_EVER["EIO"], store_timeout=_TIMEOUT) as memory:
            return words(memory)[0].item()

    with pytest.raises(ChildFailed) as caught:
        child(touch, file(_NBYTES))
    assert caught.value.signal == signal.SIGBUS


def _in_system_calls(path: Path, mode: str, faults: list[Fault]) -> list[object]:
    out = os.memfd_create("out")
    found: list[object] = []
    with (
        paged(path, mode, faults=faults, block_size=_BLOCK, store_timeout=_TIMEOUT) as memory,
        memoryview(memory) as view,
    ):
        calls = [lambda: os.write(out, view[_BLOCK : 2 * _BLOCK])]
        if mode != "r":
            os.pwrite(out, bytes(100), 0)
            calls.append(lambda: os.preadv(out, [view[2 * _BLOCK :][:100]], 0))
        for call in calls:
            try:
                found.append(call())
            except OSError as error:
                found.append(errno.errorcode[error.errno])
    return found


@pytest.mark.needs("kernel_faults")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FOR_EVER)
def test_a_system_call_gets_efault(file, mode, name):
    found = child(_in_system_calls, file(_NBYTES), mode, FOR_EVER[name])
    assert set(found) == {"EFAULT"}


def _told(path: Path, mode: str) -> list[tuple]:
    found = []
    fault = [Fault("read", count=0, errno=errno.EIO)]
    with paged(path, mode, faults=fault, block_size=_BLOCK, store_timeout=_TIMEOUT) as memory:
        memory.prefetch(3 * _BLOCK, _BLOCK)  # nobody waits: nobody is told
        for _ in range(2):
            with pytest.raises(StoreError) as caught:
                memory.prefetch(3 * _BLOCK + 100, 10, wait=True)
            error = caught.value
            found.append((error.store, error.offset, error.operation, error.errno))
    return found


@pytest.mark.parametrize("mode", MODES)
def test_a_prefetch_that_waits_raises_it(file, mode):
    path = file(_NBYTES)
    wanted = (str(path), 3 * _BLOCK, "read", errno.EIO)
    assert child(_told, path, mode) == [wanted, wanted]


def _heals(path: Path, mode: str, how: str, block: int) -> tuple[str | None, str | None]:
    """One block cannot be read for a while; the others can; then it can again."""
    os.truncate(path, 5 * block + 100)
    lacking = paged_whole(path, mode, block)
    with lacking as memory:
        good = wrong_words(words(memory)[: 5 * block // 8])
        for at in (5 * block, 6 * block, 7 * block):
            for _ in range(2):
                with pytest.raises(Struck) as caught:
                    load(memory.address + at)
                assert caught.value.signal == signal.SIGBUS
        make_file(path, 8 * block)
        if how == "evict":
            memory.evict(5 * block, 3 * block)
        else:
            length = 3 * block
            lowlevel.madvise(memory.address + 5 * block, length, mmap.MADV_DONTNEED)
        return good, wrong_words(words(memory))


def paged_whole(path: Path, mode: str, block: int):
    """Open a region of eight blocks over a file that has been truncated since it was opened."""
    cut = path.stat().st_size
    os.truncate(path, 8 * block)
    context = paged(path, mode, block_size=block, store_timeout=_TIMEOUT)
    memory = context.__enter__()
    os.truncate(path, cut)

    class Opened:
        def __enter__(self):
            return memory

        def __exit__(self, *exception):
            return context.__exit__(*exception)

    return Opened()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "how",
    ["evict", pytest.param("MADV_DONTNEED", marks=pytest.mark.needs("paging_by_move"))],
)
@pytest.mark.parametrize("block", [PAGE_SIZE, _BLOCK])
def test_a_file_cut_short_under_the_region_is_no_zeros_and_may_heal(file, mode, how, block):
    """Past the new end, also within the block that is still there in part: SIGBUS, as mmap's."""
    good, all_of_it = child(_heals, file(8 * block), mode, how, block)
    assert good is None
    assert all_of_it is None


def _healed_by_a_page(path: Path, mode: str) -> str | None:
    """Of a block that could not be read the poison of one page is discarded."""
    faults = [Fault("read", 0, 1, errno=errno.EIO)]
    how = {"block_size": _BLOCK, "store_timeout": 0, "prefetch": "off"}
    with paged(path, mode, faults=faults, **how) as memory:
        for page in range(2):
            with pytest.raises(Struck):
                load(memory.address + page * PAGE_SIZE)
        lowlevel.madvise(memory.address, PAGE_SIZE, mmap.MADV_DONTNEED)
        load(memory.address)
        return wrong_words(words(memory))


@pytest.mark.needs("paging_by_move")
@pytest.mark.parametrize("mode", MODES)
def test_a_page_whose_poison_is_discarded_brings_all_of_its_block(file, mode):
    assert child(_healed_by_a_page, file(_NBYTES), mode) is None


def _written_past_the_end(path: Path) -> tuple[str, int]:
    """A write-back past the new end makes the file longer again, with a hole before it."""
    how = {"block_size": _BLOCK, "store_timeout": _TIMEOUT, "prefetch": "off"}
    seen, size = "", 0
    with paged(path, "r+", **how) as memory:
        store(memory.address + 12 * _BLOCK, b"changed!")
        os.truncate(path, 2 * _BLOCK)
        with contextlib.suppress(StoreError):
            memory.flush()
        try:
            seen = load(memory.address + 5 * _BLOCK).hex()
        except Struck as struck:
            seen = struck.signal.name
        size = path.stat().st_size
        make_file(path, _NBYTES)
        memory.evict()
        assert load(memory.address + 5 * _BLOCK) == bytes(expected(_NBYTES)[5 * _BLOCK // 8 :][:1])
    return seen, size


def test_a_change_past_the_end_of_a_file_cut_short_makes_no_zeros(file):
    seen, _ = child(_written_past_the_end, file(_NBYTES))
    assert seen == "SIGBUS"


def _one_bad(path: Path, mode: str) -> tuple[str | None, int]:
    """Threads read on around a block that cannot be read."""
    cut = 10 * _BLOCK
    how = {"block_size": _BLOCK, "store_timeout": _TIMEOUT, "resident_limit": 4 * _BLOCK}
    with paged(path, mode, **how) as memory:
        os.truncate(path, cut)
        span = (memory.address, cut)
        readers = [Worker(memory, order=order, span=span) for order in (RANDOM, SEQUENTIAL)]
        for reader in readers:
            reader.start()
        struck = 0
        for at in (cut, cut + _BLOCK, _NBYTES - 8):
            try:
                load(memory.address + at)
            except Struck:
                struck += 1
        for reader in readers:
            reader.stop()
        return wrong_words(words(memory)[: cut // 8]), struck


@pytest.mark.parametrize("mode", MODES)
def test_other_blocks_are_not_affected(file, mode):
    assert child(_one_bad, file(_NBYTES), mode) == (None, 3)


def _waiting_elsewhere(path: Path) -> float:
    """Return the time that a touch takes while another block is being tried again and again."""
    with paged(path, "r", block_size=_BLOCK, store_timeout=5.0) as memory:
        os.truncate(path, 8 * _BLOCK)
        stuck = Worker(memory, order=SEQUENTIAL, span=(memory.address + 12 * _BLOCK, 64), steps=1)
        stuck.start()
        time.sleep(0.1)
        begin = time.monotonic()
        wrong = wrong_words(words(memory)[: 4 * _BLOCK // 8])
        took = time.monotonic() - begin
        assert wrong is None, wrong
        make_file(path, _NBYTES)
        stuck.join()
        return took


def test_a_failing_block_does_not_hold_up_the_others(file):
    assert child(_waiting_elsewhere, file(_NBYTES)) < 1.0


def _ends_at_the_first(path: Path, how: str) -> tuple[int, int | None, int, int]:
    """Have a file cut short behind 5 blocks read; failures, where, blocks there, bytes pinned."""
    block = 4 * KIB
    how_paged = {"block_size": block, "store_timeout": _TIMEOUT, "prefetch": "off"}
    array = pagemove.open_array(path, dtype=np.uint8, **how_paged)
    memory = array.region
    os.truncate(path, 5 * block)
    scattered = [*range(0, 4 * block, block), *range(9 * block, 99 * block, 2 * block)]
    call = {
        "prefetch": lambda: memory.prefetch(0, 64 * block, wait=True),
        "take": lambda: pagemove.take(array, range(0, 64 * block, block)),
        "take scattered": lambda: pagemove.take(array, scattered),
        "pinned": lambda: pagemove.pinned(array[: 64 * block]).__enter__(),
    }[how]
    with pytest.raises(StoreError) as caught:
        call()
    stats = memory.stats()
    read = memory.stats().bytes_read // block
    assert load(memory.address, 4 * block) == path.read_bytes()[: 4 * block]
    assert memory.stats().bytes_read // block == read, "what was read stays"
    return stats.errors, caught.value.offset, read, stats.pinned_nbytes


@pytest.mark.parametrize("how", ["prefetch", "take", "take scattered", "pinned"])
def test_the_first_block_that_fails_ends_a_call_for_many(file, how, capfd):
    errors, offset, read, pinned = child(_ends_at_the_first, file(_NBYTES), how)
    assert errors == 1
    assert offset == (9 if how == "take scattered" else 5) * 4 * KIB
    assert read >= 4
    assert pinned == 0
    assert capfd.readouterr().err.count("cannot read") == 1


def _slow(path: Path, mode: str) -> str | None:
    fault = [Fault("read", count=2, delay=3 * _TIMEOUT)]
    with paged(path, mode, faults=fault, block_size=_BLOCK, store_timeout=_TIMEOUT) as memory:
        try:
            return wrong_words(np.frombuffer(load(memory.address, _BLOCK), np.uint64))
        except Struck as struck:
            return None if struck.signal == signal.SIGBUS else str(struck)


@pytest.mark.parametrize("mode", MODES)
def test_an_answer_after_the_timeout_is_the_data_or_an_error(file, mode):
    assert child(_slow, file(_NBYTES), mode) is None


def test_the_last_block_of_a_file_of_odd_length_is_no_short_read(file):
    nbytes = 3 * _BLOCK + 1000
    path = file(nbytes)
    with paged(path, "r", block_size=_BLOCK, store_timeout=_TIMEOUT) as memory:
        assert load(memory.address + 3 * _BLOCK, 1000) == path.read_bytes()[3 * _BLOCK :]
        assert memory.stats().errors == memory.stats().retries == 0


def test_expected_is_what_the_file_has(file):
    assert file(_NBYTES).read_bytes() == bytes(expected(_NBYTES))


def _kept_waiting(path: Path) -> float:
    """Both workers are kept by the store for long, and a third block is touched."""
    late = [Fault("read", count=2, delay=4.0)]
    how = {"block_size": _BLOCK, "store_timeout": 0.3, "prefetch": "off"}
    with paged(path, faults=late, **how) as memory:

        def third() -> float:
            time.sleep(0.3)
            before = time.monotonic()
            with pytest.raises(Struck):
                load(memory.address + 2 * _BLOCK)
            return time.monotonic() - before

        def kept(block: int) -> None:
            load(memory.address + block * _BLOCK)

        return together(third, lambda: kept(0), lambda: kept(1))[0]


def test_a_touch_that_no_worker_gets_to_is_an_error_in_time(file):
    assert child(_kept_waiting, file(_NBYTES)) < 2
