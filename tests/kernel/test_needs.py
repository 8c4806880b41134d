"""The tests' own ground: what `needs` provides is really there, and children are really ended."""

import mmap
import os
import signal
import time

import pytest

from pagemove import PAGE_SIZE, PageState
from support import ChildFailed, child, living_child, pattern, state, wait_for, write
from support.system import Ring


@pytest.mark.needs("swap")
def test_a_page_swaps_out_and_in(foreign):
    area = foreign(1)
    contents = area.fill()
    area.page_out()
    assert state(area.address) & PageState.SWAPPED
    assert area.contents() == contents


@pytest.mark.needs("ksm")
def test_ksm_merges_equal_pages(foreign):
    area = foreign(2)
    for page in range(2):
        write(area.page(page), 7)
    area.advise(mmap.MADV_MERGEABLE)
    wait_for(lambda: not state(area.address) & PageState.EXCLUSIVE)
    assert area.contents() == pattern(7) * 2
    area.advise(mmap.MADV_UNMERGEABLE)


@pytest.mark.needs("io_uring")
def test_io_uring_pins():
    with Ring() as ring, pytest.raises(OSError, match="14"):
        ring.register(0, PAGE_SIZE)


def test_a_child_gives_its_result():
    assert child(lambda: os.getpid()) != os.getpid()


def test_the_exception_of_a_child_is_raised_here():
    with pytest.raises(ChildFailed, match="ZeroDivisionError"):
        child(lambda: 1 // 0)


def test_the_signal_of_a_child_is_reported():
    with pytest.raises(ChildFailed) as caught:
        child(lambda: os.kill(os.getpid(), signal.SIGSEGV))
    assert caught.value.signal == signal.SIGSEGV


def test_a_child_is_killed_at_its_deadline():
    with pytest.raises(ChildFailed) as caught:
        child(lambda: time.sleep(60), deadline=0.2)
    assert caught.value.timed_out


def test_a_living_child_obeys_until_it_is_ended():
    with living_child() as one:
        assert one.run(os.getpid) == one.pid
        one.end()
        assert os.waitstatus_to_exitcode(one.status) == 0


def test_an_area_lies_alone_between_gaps(foreign):
    area = foreign(3)
    assert not any(area.states())
    for outside in (area.address - 1, area.end):
        with pytest.raises(ChildFailed) as caught:
            child(lambda where=outside: __import__("ctypes").string_at(where, 1))
        assert caught.value.signal == signal.SIGSEGV
