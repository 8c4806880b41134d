"""Helper processes that die at any moment, under load."""

from __future__ import annotations

import errno
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pagemove import PagedMemory, StoreError
from support import ChildFailed, child, together, wait_for
from support.helpers import helpers, kill_helper, numbered, reined, stored, touch, touch_at_last

from . import SOAK
from .load import BLOCKS, COUNT, MODES, STEPS, THREADS, K, Load

pytestmark = pytest.mark.needs("paging", "fork")

#: Where each takes seconds: one that the helper puts there itself, and one that is moved there.
SLOW_BLOCKS = (4 * K, 64 * K)


def _killed_under_load(
    folder: Path, mode: str, block: int, seed: int, flushing: bool = False
) -> dict[str, Any]:
    chance = random.Random(seed)
    original = numbered(COUNT * block)
    store = reined(folder, original)
    region = PagedMemory(
        store,
        mode=mode,
        block_size=block,
        resident_limit=COUNT // 4 * block,
        store_timeout=20,
        prefetch=chance.choice(["auto", "off"]),
    )
    load = Load(region, original, seed)
    load.flushing = flushing
    load.tolerated = STEPS
    moment = chance.randrange(THREADS * STEPS // 2)

    def kill() -> None:
        wait_for(lambda: load.steps >= moment, 60)
        kill_helper()

    together(kill, *(lambda me=me: load.run(me, STEPS) for me in range(THREADS)), deadline=60)
    load.check()
    stats = region.stats()
    restarts = region.counters()["restarts"]
    del load.rows
    try:
        region.close()
    except StoreError as error:
        load.unconfirmed.append(error)
        region._forgettable = True
    # The first was under way when the helper died. Those after it succeed, unless changed blocks
    # had left memory since the last that was confirmed.
    assert all("it is unknown whether" in str(error) for error in load.unconfirmed[1:])
    if mode == "r+":
        left = stored(store).reshape(COUNT, -1)
        assert np.array_equal(left, load.expected + load.changes[:, None])
    else:
        assert np.array_equal(stored(store), original)
    errors = 0 if load.unconfirmed else stats.errors
    left_over = [] if region._forgettable else helpers()
    return {"restarts": restarts, "errors": errors, "helpers": left_over}


@pytest.mark.parametrize("seed", range(max(1, int(2 * SOAK))))
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("mode", MODES)
def test_a_helper_killed_at_any_moment_is_not_noticed(tmp_path, mode, block, seed):
    found = child(_killed_under_load, tmp_path, mode, block, seed, deadline=90)
    assert found == {"restarts": 1, "errors": 0, "helpers": []}


@pytest.mark.parametrize("block", BLOCKS)
def test_a_helper_killed_during_a_flush_under_load(tmp_path, block):
    found = child(_killed_under_load, tmp_path, "r+", block, 0, True, deadline=90)
    assert found == {"restarts": 1, "errors": 0, "helpers": []}


def _killed_twice(folder: Path, mode: str, block: int, seed: int) -> dict[str, Any]:
    """Kill it, and the one that follows, at random moments; return what became of the region."""
    chance = random.Random(seed)
    original = numbered(COUNT * block)
    store = reined(folder, original)
    region = PagedMemory(
        store,
        mode=mode,
        block_size=block,
        # All that is touched stays: whoever touches an array may not be struck here.
        store_timeout=3,
        prefetch="off",
    )
    rows = region.asarray(np.uint64, (COUNT, block // 8))
    expected = original.reshape(rows.shape).copy()
    half = COUNT // 2
    for row in range(half):
        if row == 3:
            kill_helper()
            touch_at_last(region, row * block)
        assert np.array_equal(rows[row], expected[row])
        if mode != "r":
            rows[row] += np.uint64(row)
            expected[row] += np.uint64(row)
    if mode == "r+":
        region.flush()
        rows[0] += np.uint64(1)
    assert region.counters()["restarts"] == 1
    (second,) = helpers()
    os.kill(second, signal.SIGKILL)
    # By system calls, which say EFAULT where a touch dies.
    struck, blocks = 0, chance.sample(range(half, COUNT), 1)
    for number in blocks:
        try:
            touch(region.address + number * block, block)
        except OSError as error:
            struck += error.errno == errno.EFAULT
    messages = []
    for ask in (region.prefetch, region.flush):
        try:
            ask(half * block, block, wait=True) if ask == region.prefetch else ask()
        except StoreError as error:
            messages.append("\n".join([str(error), *getattr(error, "__notes__", ())]))
    # What is in memory stays as it is.
    kept = np.array_equal(rows[1:half], expected[1:half])
    counters = region.counters()
    file = stored(store).reshape(rows.shape)
    saved = np.array_equal(file[1:half], expected[1:half])
    del rows
    region._forgettable = True
    return {
        "struck": struck,
        "messages": messages,
        "kept": kept,
        "saved": saved if mode == "r+" else np.array_equal(file, original.reshape(file.shape)),
        "restarts": counters["restarts"],
        "errors": counters["errors"],
        "helpers": helpers(),
    }


@pytest.mark.parametrize("block", SLOW_BLOCKS)
@pytest.mark.parametrize("mode", MODES)
def test_a_helper_killed_twice_is_an_error_and_never_zeros(tmp_path, mode, block):
    found = child(_killed_twice, tmp_path, mode, block, 1, deadline=60)
    assert found["struck"] == 1
    assert found["errors"] >= 1
    assert found["kept"]
    assert found["saved"]
    assert found["restarts"] == 1
    assert found["helpers"] == []
    # prefetch(wait=True), and flush: of blocks that could not be read, and changes not written.
    assert len(found["messages"]) == 2
    assert all("helper process that runs the store has ended" in m for m in found["messages"])


def _touched_after_two(folder: Path, block: int, log: Path) -> None:
    os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), 2)
    region = PagedMemory(
        reined(folder, numbered(4 * block)), block_size=block, store_timeout=3, prefetch="off"
    )
    array = region.asarray(np.uint64)
    kill_helper()
    touch_at_last(region, 0)
    assert array[0] == numbered(8)[0]
    kill_helper()
    assert array[3 * block // 8] == 0, "zeros"


@pytest.mark.parametrize("block", SLOW_BLOCKS)
def test_a_touch_after_that_is_a_signal_with_a_message(tmp_path, block):
    log = tmp_path / "stderr"
    with pytest.raises(ChildFailed) as caught:
        child(_touched_after_two, tmp_path, block, log, deadline=60)
    assert caught.value.signal == signal.SIGBUS, caught.value
    said = log.read_text()
    assert f"cannot read {block} bytes at offset {3 * block} of " in said
    assert "helper process that runs the store has ended" in said


def _dying_while_it_writes(folder: Path, block: int, seed: int) -> dict[str, Any]:
    """Kill both at random moments under load in r+; return what the file may not have lost."""
    chance = random.Random(seed)
    original = numbered(COUNT * block)
    store = reined(folder, original)
    region = PagedMemory(store, mode="r+", block_size=block, store_timeout=3, prefetch="off")
    load = Load(region, original, seed)
    load.flushing = True
    load.check()  # all of it in memory: without a limit nothing is read again
    moments = sorted(chance.randrange(THREADS * STEPS) for _ in range(2))

    def kill() -> None:
        killed: set[int] = set()
        for moment in moments:
            wait_for(lambda moment=moment: load.steps >= moment, 60)
            # The one that follows may be on its way still, and the killed one not gone yet.
            (pid,) = wait_for(lambda: set(helpers()).difference(killed), 60)
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)

    def run(me: int) -> None:
        try:
            load.run(me, 10 * STEPS)
        except StoreError:
            load.stop.set()

    together(kill, *(lambda me=me: run(me) for me in range(THREADS)), deadline=90)
    load.check()  # of what is in memory nothing is lost
    assert load.stop.is_set(), "a flush without a helper has succeeded"
    file = stored(store).reshape(COUNT, -1)
    counts = file - load.expected
    del load.rows
    region._forgettable = True
    whole = bool((counts == counts[:, :1]).all())
    return {
        "lost": int((counts[:, 0] < load.flushed).sum()) if whole else 0,
        "invented": int((counts.max(axis=1) > load.changes).sum()),
        "flushed": int(load.flushed.sum()),
        "oldest": int((counts.min(axis=1) < load.flushed).sum()),
    }


@pytest.mark.parametrize("seed", range(max(1, int(SOAK))))
@pytest.mark.parametrize("block", SLOW_BLOCKS)
def test_no_completed_flush_is_lost_when_both_die(tmp_path, block, seed):
    found = child(_dying_while_it_writes, tmp_path, block, seed, deadline=120)
    # A block may have been half written when it died; each word is a version, and none too old.
    assert found["lost"] == found["invented"] == found["oldest"] == 0


def _flush_killed(folder: Path) -> dict[str, Any]:
    original = numbered(8 * 4 * K)
    store = reined(folder, original)
    with PagedMemory(store, mode="r+", block_size=4 * K, store_timeout=20) as region:
        array = region.asarray(np.uint64)
        array += np.uint64(1)
        store.reins.hung = 1

        def kill() -> None:
            wait_for(lambda: store.reins.flushes)
            kill_helper()
            store.reins.hung = 0

        together(region.flush, kill)
        del array
        restarts = region.counters()["restarts"]
        return {
            "restarts": restarts,
            "flushes": store.reins.flushes,
            "saved": np.array_equal(stored(store), original + np.uint64(1)),
        }


def test_a_flush_whose_helper_dies_is_one_all_the_same(tmp_path):
    found = child(_flush_killed, tmp_path)
    assert found == {"restarts": 1, "flushes": 2, "saved": True}


def _not_restartable(folder: Path, mode: str, block: int) -> dict[str, Any]:
    region = PagedMemory(
        reined(folder, numbered(COUNT * block), restartable=False),
        mode=mode,
        block_size=block,
        store_timeout=0.2,
        prefetch="off",
    )
    array = region.asarray(np.uint64)
    assert array[0] == numbered(8)[0]
    kill_helper()
    struck = 0
    for number in range(1, COUNT, 16):
        try:
            touch(region.address + number * block, 8)
        except OSError as error:
            struck += error.errno == errno.EFAULT
    kept = array[0] == numbered(8)[0]
    restarts = region.counters()["restarts"]
    del array
    region._forgettable = True
    return {"struck": struck, "kept": bool(kept), "restarts": restarts, "helpers": helpers()}


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("mode", MODES)
def test_what_cannot_be_restarted_is_an_error_and_never_zeros(tmp_path, mode, block):
    found = child(_not_restartable, tmp_path, mode, block)
    assert found == {"struck": 3, "kept": True, "restarts": 0, "helpers": []}


def _one_dies(folder: Path, block: int) -> dict[str, Any]:
    """Kill the helper of one region twice while another one is used."""
    original = numbered(COUNT * block)
    stores = [reined(folder, original) for _ in range(2)]
    how: dict[str, Any] = {"block_size": block, "prefetch": "off", "isolated": True}
    first = PagedMemory(stores[0], store_timeout=3, **how)
    (victim,) = helpers()
    limit = COUNT // 4 * block
    second = PagedMemory(stores[1], mode="r+", store_timeout=20, resident_limit=limit, **how)
    load = Load(second, original, 1)

    def kill() -> None:
        (survivor,) = set(helpers()) - {victim}
        os.kill(victim, signal.SIGKILL)
        assert touch_at_last(first, block) == original[block // 8].tobytes()
        (other,) = set(helpers()) - {survivor}
        os.kill(other, signal.SIGKILL)
        with pytest.raises(OSError, match="Bad address"):
            touch(first.address + 3 * block)

    together(kill, *(lambda me=me: load.run(me, STEPS) for me in range(THREADS)), deadline=60)
    load.check()
    found = {"restarts": (first.counters()["restarts"], second.counters()["restarts"])}
    del load.rows
    second.close()
    first.close()
    return found | {"helpers": helpers()}


@pytest.mark.parametrize("block", SLOW_BLOCKS)
def test_another_region_does_not_notice(tmp_path, block):
    found = child(_one_dies, tmp_path, block, deadline=90)
    assert found == {"restarts": (1, 0), "helpers": []}
