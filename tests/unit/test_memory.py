"""memory.py: what finds the owner of a byte, and what happens where the kernel lacks something."""

import errno
import os
import time

import numpy as np
import pytest

import pagemove
from pagemove import (
    HUGE_PAGE_SIZE,
    PAGE_SIZE,
    Memory,
    lowlevel,
    memory,
    registration,
    remap_anon_pages,
)
from pagemove._native import remap
from pagemove._native.mapping import Hold, Mapping
from pagemove.memory import owner_at, owner_of, spare_tail
from support import read, vmas_in, write

P = PAGE_SIZE


class TestOwnerOf:
    def test_memory_and_its_views(self):
        with Memory(2 * P) as owner:
            array = owner.asarray(np.float32)
            views = [
                owner,
                memoryview(owner),
                memoryview(owner)[5:9],
                array,
                array[3:],
                array.reshape(2, -1).T,
                memoryview(array),
                np.frombuffer(owner, np.uint8),
                np.frombuffer(memoryview(array), np.uint8)[7:],
            ]
            assert all(owner_of(view) is owner for view in views)
            del array, views

    @pytest.mark.parametrize("other", [None, 5, b"x", bytearray(5), np.zeros(5), "text"], ids=repr)
    def test_anything_else(self, other):
        assert owner_of(other) is None


class TestOwnerAt:
    def test_every_byte_of_it(self):
        with Memory(3 * P) as owner:
            start = owner.address
            for address, length in (
                (start, P),
                (start + 2 * P, P),
                (start - P, 2 * P),
                (start, 9 * P),
            ):
                assert owner_at(address, length) is owner

    def test_neither_before_nor_after(self, foreign):
        area = foreign(3)
        assert owner_at(area.address, area.nbytes) is None
        with Memory(P) as owner:
            assert owner_at(owner.address - P, P) is not owner
            assert owner_at(owner.address + P, P) is not owner

    def test_not_once_closed(self):
        owner = Memory(P)
        address = owner.address
        owner.close()
        assert owner_at(address, P) is None


class TestSpareTail:
    """Only the rest of the last page of an array made by `empty` is nobody else's."""

    def tail(self, buffer) -> int:
        with Hold(buffer) as hold:
            return spare_tail(buffer, hold.address + hold.nbytes)

    @pytest.mark.parametrize("count", [1, 10, P - 1, P, P + 1, 3 * P - 7])
    def test_of_an_array(self, count):
        array = pagemove.empty(count, np.uint8)
        assert self.tail(array) == -count % P
        assert self.tail(memoryview(array)) == -count % P
        assert self.tail(array[count // 2 :]) == -count % P

    def test_of_part_of_an_array(self):
        array = pagemove.empty(100, np.uint8)
        assert self.tail(array[:50]) == 0
        assert self.tail(array[:0]) == 0

    def test_of_a_memory(self):
        with Memory(100) as owner:
            assert self.tail(owner) == 0
            assert self.tail(owner.asarray("u1")) == 0
            assert self.tail(owner.asarray("u1", 100)) == 0

    def test_of_anything_else(self):
        assert self.tail(np.zeros(10)) == 0
        assert self.tail(bytearray(10)) == 0


class TestRegister:
    """register: the descriptor mended, a closed one's registrations waited for."""

    @pytest.fixture
    def refused(self, monkeypatch):
        """Let UFFDIO_REGISTER fail with these codes first."""
        codes, real = [], lowlevel.register

        def register(*arguments):
            if codes:
                code = codes.pop(0)
                raise OSError(code, os.strerror(code))
            return real(*arguments)

        monkeypatch.setattr(lowlevel, "register", register)
        return codes

    @pytest.mark.needs("move")
    @pytest.mark.parametrize("codes", [[], [errno.EBADF], [errno.ENOTTY, errno.EBADF]])
    def test_a_bad_descriptor_is_replaced(self, foreign, refused, codes):
        refused += codes
        registration.register(foreign().address, P)
        assert not refused

    @pytest.mark.needs("move")
    def test_a_foreign_userfaultfd_raises_at_once(self, foreign, refused, monkeypatch):
        monkeypatch.setattr(registration, "_reopened", -1e9)
        refused += [errno.EBUSY]
        with pytest.raises(OSError, match="busy"):
            registration.register(foreign().address, P)

    @pytest.mark.needs("move")
    def test_a_closed_descriptors_is_waited_for(self, foreign, refused, monkeypatch):
        monkeypatch.setattr(registration, "_reopened", time.monotonic())
        refused += [errno.EBUSY] * 3
        registration.register(foreign().address, P)
        assert not refused

    def test_other_errors_pass(self, foreign, refused):
        refused += [errno.ENOMEM]
        with pytest.raises(OSError, match="memory"):
            registration.register(foreign().address, P)


class TestLesserKernels:
    """What the kernel refuses beyond mapping memory does not stop a Memory from being made."""

    @pytest.mark.parametrize("name", ["madvise", "set_vma_name", "register"])
    @pytest.mark.parametrize("code", [errno.EINVAL, errno.EPERM, errno.ENOSYS])
    def test_is_memory_all_the_same(self, monkeypatch, name, code):
        def refuse(*_):
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            patch.setattr(memory if name == "register" else lowlevel, name, refuse)
            owner = Memory(P)
        with owner:
            write(owner.address, 1)
            assert "dc" in next(
                vma.flags for vma in pagemove.vmas() if vma.start <= owner.address < vma.end
            )

    @pytest.mark.needs("move")
    def test_is_registered_by_the_first_move_then(self, monkeypatch):
        def refuse(*_):
            raise OSError(errno.EPERM, "no")

        with monkeypatch.context() as patch:
            patch.setattr(memory, "register", refuse)
            dst = Memory(P)
        with dst, Memory(P) as src:
            write(src.address, 1)
            assert remap_anon_pages(dst, src, P) == P

    def test_without_userfaultfd(self, monkeypatch):
        def refuse():
            raise OSError(errno.EPERM, "userfaultfd")

        with monkeypatch.context() as patch:
            patch.setattr(remap, "descriptor", refuse)
            with Memory(P) as owner:
                write(owner.address, 1)
            array = pagemove.empty(10)
            array[:] = 1

    def test_without_huge_pages(self, monkeypatch):
        monkeypatch.setattr(memory, "HUGE_PAGE_SIZE", 0)
        with Memory(4 << 20, huge_pages=True) as owner:
            assert owner.address % P == 0
            write(owner.address, 1)


class TestMapping:
    """_native.mapping: the owner of the mapping itself."""

    @pytest.mark.parametrize("alignment", [P, 16 * P, 2 << 20, 1 << 30])
    def test_aligns_and_trims(self, alignment):
        mapping = Mapping()
        mapping._map(3 * P, alignment)
        try:
            assert mapping.address % alignment == 0
            # Nothing of what was mapped to align it is left around it.
            around = vmas_in(mapping.address - P, 5 * P)
            assert sum(end - start for start, end, _, _ in around) < alignment + (64 << 20)
            write(mapping.address + 2 * P, 1)
        finally:
            mapping.close()

    def test_is_mapped_once(self):
        mapping = Mapping()
        mapping._map(P, P)
        with pytest.raises(ValueError, match="already"):
            mapping._map(P, P)
        mapping.close()

    def test_counts_its_buffers(self):
        mapping = Mapping()
        mapping._map(P, P)
        first, second = memoryview(mapping), memoryview(mapping)
        for view in (first, second):
            with pytest.raises(BufferError):
                mapping.close()
            view.release()
        mapping.close()

    def test_is_unmapped_when_the_last_reference_goes(self):
        mapping = Mapping()
        mapping._map(P, P)
        address = mapping.address
        view = memoryview(mapping)
        del mapping
        write(address, 2)
        assert read(address)[:8] == bytes(view[:8])
        del view
        assert not vmas_in(address, P)


class TestHold:
    @pytest.mark.parametrize("writable", [False, True])
    def test_holds_until_released(self, writable):
        data = bytearray(10)
        hold = Hold(data, writable)
        assert hold.nbytes == 10
        with pytest.raises(BufferError):
            data.append(1)
        hold.release()
        hold.release()
        data.append(1)

    def test_is_a_context(self):
        data = bytearray(10)
        with Hold(data):
            pass
        data.append(1)

    def test_lets_go_when_it_is_forgotten(self):
        data = bytearray(10)
        hold = Hold(data)
        del hold
        data.append(1)

    def test_lets_go_of_what_it_refuses(self):
        data = np.zeros((4, 4))
        with pytest.raises(TypeError, match="contiguous"):
            Hold(data.T)
        frozen = bytearray(4)
        with pytest.raises(BufferError, match="read-only"):
            Hold(memoryview(frozen).toreadonly(), True)
        frozen.append(1)


@pytest.mark.needs("thp")
def test_a_huge_page_size_that_is_a_power_of_two():
    assert HUGE_PAGE_SIZE & (HUGE_PAGE_SIZE - 1) == 0


@pytest.mark.parametrize("wrong", ["8MiB", 2.0, True, None])
def test_a_length_that_is_no_number(wrong):
    with pytest.raises(TypeError, match="nbytes must be a number of bytes, such as 8 << 20") as why:
        pagemove.Memory(wrong)
    assert str(why.value).endswith(f"not {wrong!r}")
    with (
        pagemove.Memory(pagemove.PAGE_SIZE) as memory,
        pytest.raises(TypeError, match=f"offset must be .*, not {wrong!r}"),
    ):
        memory.discard(wrong)
