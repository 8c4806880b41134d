"""calls/: what becomes of the kernel's answers."""

import errno

import numpy as np
import pytest

import pagemove
from pagemove import PAGE_SIZE, Memory, PageState, RemapError, UnsupportedError
from pagemove._native import remap
from pagemove.calls import explain as explaining
from pagemove.calls import mappings
from pagemove.calls import remap as moving
from pagemove.calls.arguments import Place, check_arguments
from pagemove.calls.explain import explain
from pagemove.calls.failure import Failure
from support import hole, pattern, read, together, write, write_all

pytestmark = pytest.mark.needs("move")

P = PAGE_SIZE


@pytest.fixture
def answers(monkeypatch):
    """Replace the native move by a list of answers; return the calls made and the list."""
    made, left = [], []

    def move(dst, src, length, flags):
        made.append((dst, src, length, flags))
        return left.pop(0)

    monkeypatch.setattr(remap, "move", move)
    return made, left


@pytest.fixture
def pair(foreign):
    dst, src = foreign(4), foreign(4)
    src.fill()
    return dst, src


class TestRegisteringAgain:
    """_move_registering: what is mended unseen, how often, and what the rest becomes."""

    def run(self, pair):
        dst, src = pair
        # By name: the fast path would ask the kernel first.
        return pagemove.remap_anon_pages(dst.address, src.address, length=4 * P)

    def test_einval_registers_and_tries_again(self, answers, pair, monkeypatch):
        made, left = answers
        left += [-errno.EINVAL, 4 * P]
        registered = []
        monkeypatch.setattr(mappings, "register", lambda *range_: registered.append(range_))
        assert self.run(pair) == 4 * P
        assert registered == [(pair[0].address, 4 * P)]
        assert len(made) == 2

    @pytest.mark.parametrize("code", [errno.EBADF, errno.ENOTTY])
    def test_a_bad_descriptor_is_opened_anew(self, answers, pair, monkeypatch, code):
        _, left = answers
        left += [-code, 2 * P]
        reopened = []
        monkeypatch.setattr(moving, "reopen", lambda: reopened.append(1))
        assert self.run(pair) == 2 * P
        assert reopened == [1]

    def test_both_one_after_the_other(self, answers, pair):
        _, left = answers
        left += [-errno.EBADF, -errno.EINVAL, 4 * P]
        assert self.run(pair) == 4 * P

    def test_permanent_einval_ends_in_an_error(self, answers, pair):
        made, left = answers
        left += [-errno.EINVAL] * 50
        with pytest.raises(RemapError) as caught:
            self.run(pair)
        assert caught.value.errno == errno.EINVAL
        assert "EINVAL" in str(caught.value)
        assert f"{pair[0].address:#x}" in str(caught.value)
        assert 2 <= len(made) < 50

    def test_no_memory_for_page_tables(self, answers, pair):
        _, left = answers
        left += [-errno.ENOMEM]
        with pytest.raises(RemapError, match="page tables") as caught:
            self.run(pair)
        assert caught.value.errno == errno.ENOMEM
        assert caught.value.address == pair[0].address

    @pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP])
    def test_unsupported(self, answers, pair, code):
        _, left = answers
        left += [-code]
        with pytest.raises(UnsupportedError) as caught:
            self.run(pair)
        assert caught.value.errno == code

    @pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS, errno.EMFILE])
    def test_no_userfaultfd(self, pair, monkeypatch, code):
        def move(*_):
            raise OSError(code, "userfaultfd")

        monkeypatch.setattr(remap, "move", move)
        for call in (
            lambda: self.run(pair),
            lambda: pagemove.move(pair[0].array(), pair[1].array()),
        ):
            with pytest.raises(UnsupportedError) as caught:
                call()
            assert caught.value.errno == code

    def test_move_goes_on_after_a_short_count(self, answers, pair):
        made, left = answers
        dst, src = pair
        left += [P, 2 * P, P]
        assert pagemove.move(dst.array(), src.array()) == 4 * P
        assert [call[2] for call in made] == [4 * P, 3 * P, P]
        assert [call[0] - dst.address for call in made] == [0, P, 3 * P]

    def test_move_reports_its_progress(self, answers, pair):
        _, left = answers
        left += [P, 2 * P, -errno.EBUSY]
        with pytest.raises(pagemove.PageShared, match="12288 bytes were moved before") as caught:
            pagemove.move(pair[0].array(), pair[1].array())
        assert caught.value.moved == 3 * P
        assert caught.value.address == pair[1].page(3)


class TestFastPathAndItsFallback:
    """The C function and the Python function that answers for it agree."""

    @pytest.fixture
    def slowly(self):
        return moving._remap_with_care

    @pytest.mark.parametrize("pages", [1, 16, 17])
    @pytest.mark.parametrize("flags", [0, 1])
    def test_on_success(self, foreign, slowly, pages, flags):
        for call in (pagemove.remap_anon_pages, slowly):
            dst, src = foreign(pages), foreign(pages)
            contents = src.fill()
            assert call(dst.address, src.address, pages * P, flags) == pages * P
            assert dst.contents() == contents

    @pytest.mark.parametrize(
        ("dst", "src", "length", "flags"),
        [
            (1, 0, P, 0),
            (0, 1, P, 0),
            (0, 0, P - 1, 0),
            (0, 0, 0, 0),
            (0, 0, P, 2),
            (0, 0, P, 1 << 33),
            (0, 0, P, -1),
            (0, 0, -P, 0),
            (0, 0, 2**64, 0),
            (2**64, 0, P, 0),
            (-(2**64), 0, P, 0),
        ],
    )
    def test_on_errors(self, pair, slowly, dst, src, length, flags):
        errors = []
        for call in (pagemove.remap_anon_pages, slowly):
            with pytest.raises(RemapError) as caught:
                call(pair[0].address + dst, pair[1].address + src, length, flags)
            errors.append((type(caught.value), str(caught.value), caught.value.address))
        assert errors[0] == errors[1]

    def test_waits_for_a_thread_that_moves_nearby(self):
        # Both want the same 2 MiB stripe: one finds it locked, and waits without the GIL.
        with Memory(4 * P) as a, Memory(4 * P) as b:
            whole = write_all(a.address, 4)

            def bounce(page):
                to, of = b.address + page * P, a.address + page * P
                for _ in range(2000):
                    assert pagemove.remap_anon_pages(to, of, P) == P
                    to, of = of, to

            together(*(lambda page=page: bounce(page) for page in range(4)))
            assert read(a.address, 4 * P) == whole

    def test_bool_is_an_integer(self, pair):
        dst, src = pair
        assert pagemove.remap_anon_pages(dst.address, src.address, P, True) == P
        with pytest.raises(RemapError):
            pagemove.remap_anon_pages(True, src.address, P)


class TestArguments:
    @pytest.mark.parametrize("length", [P, 5 * P])
    def test_good_ones_pass(self, length):
        check_arguments(100 * P, 200 * P, length, 1, 1)
        check_arguments(100 * P, 101 * P, length, 0, 1)
        check_arguments(2**64 - length, 0, length, 0, 0)

    @pytest.mark.parametrize(
        ("arguments", "address"),
        [
            ((8, 0, P, 0, 0), 8),
            ((0, 8, P, 0, 0), 8),
            ((0, 10 * P, 0, 0, 0), None),
            ((0, 10 * P, P + 1, 0, 0), None),
            ((2**64 - P, 0, 2 * P, 0, 0), 2**64 - P),
            ((0, 2**64 - P, 2 * P, 0, 0), 2**64 - P),
            ((-P, 0, P, 0, 0), -P),
            ((0, 10 * P, P, 1, 0), None),
            ((10 * P, 10 * P, P, 0, 0), 10 * P),
            ((11 * P, 10 * P, 2 * P, 0, 0), 11 * P),
        ],
    )
    def test_bad_ones_name_the_offending_address(self, arguments, address):
        with pytest.raises(Failure) as caught:
            check_arguments(*arguments)
        assert caught.value.code == errno.EINVAL
        assert caught.value.address == address


class TestExplain:
    """What a failure means is read from the page tables; its errno may be another then."""

    @pytest.mark.parametrize(
        ("code", "dst_state", "src_state", "becomes", "words"),
        [
            (errno.ENOENT, 0, 0, errno.ENOENT, "is a hole: write"),
            (errno.ENOENT, 0, PageState.PRESENT, errno.ENOENT, "by now a page has arrived"),
            (errno.ENOENT, PageState.PRESENT, 0, errno.EEXIST, "holds a page already"),
            (
                errno.EFAULT,
                PageState.PRESENT,
                PageState.GUARD,
                errno.EEXIST,
                "holds a page already",
            ),
            (errno.EEXIST, PageState.GUARD, 0, errno.EEXIST, "a guard page"),
            (errno.EEXIST, PageState.SWAPPED, 0, errno.EEXIST, "swapped-out"),
            (errno.EEXIST, PageState.PRESENT | PageState.ZERO, 0, errno.EEXIST, "zero page"),
            (errno.EEXIST, PageState.PRESENT | PageState.HUGE, 0, errno.EEXIST, "huge page"),
            (errno.EEXIST, 0, 0, errno.EEXIST, "another thread"),
            (errno.EBUSY, 0, PageState.PRESENT, errno.EBUSY, "living forked process"),
            (errno.EBUSY, 0, PageState.PRESENT | PageState.EXCLUSIVE, errno.EBUSY, "pinned"),
            (errno.EFAULT, 0, PageState.GUARD, errno.EFAULT, "guard page"),
            (errno.EFAULT, 0, PageState.SWAPPED, errno.EFAULT, "poisoned"),
            (errno.EPERM, 0, 0, errno.EPERM, "EPERM"),
        ],
    )
    def test_codes_and_states(self, pair, monkeypatch, code, dst_state, src_state, becomes, words):
        dst, src = pair
        states = {dst.address: dst_state, src.address: src_state}
        monkeypatch.setattr(
            explaining, "states_at", lambda at, pages: np.array([states[at]], np.uint16)
        )
        failure = explain(code, dst.address, src.address, P)
        assert failure.code == becomes
        assert words in failure.text
        assert failure.address in (dst.address, src.address)
        assert f"{failure.address:#x}" in failure.text

    def test_page_tables_that_cannot_be_read(self, pair, monkeypatch):
        def refused(*_):
            raise PermissionError(errno.EACCES, "no")

        monkeypatch.setattr(explaining, "states_at", refused)
        failure = explain(errno.EBUSY, pair[0].address, pair[1].address, P)
        assert failure.code == errno.EBUSY
        assert "EBUSY" in failure.text

    def test_mappings_are_looked_at_first(self, pair):
        dst, src = pair
        dst.unmap()
        failure = explain(errno.ENOENT, dst.address, src.address, P)
        assert (failure.code, failure.address) == (errno.EINVAL, dst.address)

    def test_as_error_names_call_and_progress(self):
        error = Failure(errno.ENOENT, 0x5000, "text").as_error("call", moved=P, index=7)
        assert type(error) is pagemove.SourceHole
        assert str(error) == f"[Errno 2] call: text ({P} bytes were moved before)"
        assert (error.moved, error.index, error.address) == (P, 7, 0x5000)


class TestPlace:
    def test_of_an_address(self):
        for number in (4096, np.int64(4096), True):
            with Place(number) as place:
                assert (place.address, place.nbytes) == (int(number), None)
                with pytest.raises(TypeError, match="must be a buffer"):
                    place.own_nbytes("dst")

    def test_of_a_buffer_holds_it(self):
        with Memory(P) as memory:
            with Place(memory) as place:
                assert (place.address, place.nbytes) == (memory.address, P)
                assert place.own_nbytes("dst") == place.whole_pages("dst") == P
                with pytest.raises(BufferError):
                    memory.close()
            write(memory.address, 1)

    @pytest.mark.parametrize("wrong", [np.float64(1), np.bool_(True), np.str_("x")])
    def test_of_a_numpy_scalar_that_is_no_integer(self, wrong):
        # They have buffers, of a value that lies anywhere.
        with pytest.raises(TypeError):
            Place(wrong)

    def test_of_a_partial_page(self, foreign):
        with Place(foreign().array()[:10]) as place:
            assert place.own_nbytes("dst") == 10
            with pytest.raises(Failure, match="whole pages"):
                place.whole_pages("dst")


def test_a_memory_moved_into_keeps_its_address():
    with Memory(P) as dst, Memory(P) as src:
        write(src.address, 3)
        before = dst.address
        pagemove.move(dst, src)
        assert dst.address == before
        assert read(before) == pattern(3)
        assert hole(src.address)
