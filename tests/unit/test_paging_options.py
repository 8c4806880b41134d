"""paging/options.py: every argument of PagedMemory that is refused, with what to do instead."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pagemove import PAGE_SIZE, Memory
from pagemove.paging.options import check_store, checked
from pagemove.paging.stored import is_native
from pagemove.stores import FileStore
from pagemove.testing import FaultyStore
from support.stores import BytesStore

GIB = 1 << 30
DEFAULTS = {
    "resident_limit": None,
    "block_size": 65536,
    "mode": "r",
    "prefetch": "auto",
    "store_timeout": 5.0,
    "name": None,
}


def options(nbytes=GIB, **changes):
    return checked(nbytes, **{**DEFAULTS, **changes})


class TestTaken:
    def test_defaults(self):
        found = options(1 << 20)
        assert (found.block_size, found.limit, found.mode) == (65536, 0, 0)
        assert (found.read_ahead, found.timeout_ns, found.name) == (True, 5 * 10**9, b"pagemove")

    @pytest.mark.parametrize(("mode", "number"), [("r", 0), ("r+", 1), ("c", 2)])
    def test_modes(self, mode, number):
        assert options(mode=mode).mode == number

    @pytest.mark.parametrize("limit", ["256KiB", "256 kib", 1 << 18, np.int32(1 << 18)])
    def test_exactly_four_blocks(self, limit):
        assert options(resident_limit=limit).limit == 1 << 18

    @pytest.mark.parametrize(
        ("limit", "chosen"), [(None, False), ("auto", False), ("Unlimited ", True), (1 << 20, True)]
    )
    def test_whether_a_limit_is_chosen(self, limit, chosen):
        found = options(1 << 20, resident_limit=limit)
        assert found.chosen is chosen
        assert found.limit == (limit if limit == 1 << 20 else 0)

    @pytest.mark.parametrize("size", [PAGE_SIZE, "64KiB", "2MiB", np.uint32(1 << 20)])
    def test_block_sizes(self, size):
        found = options(block_size=size, resident_limit="1GiB").block_size
        assert found & (found - 1) == 0
        assert type(found) is int

    def test_seconds(self):
        assert options(store_timeout=0).timeout_ns == 0
        assert options(store_timeout=1e-10).timeout_ns == 1
        assert options(store_timeout=np.float32(0.5)).timeout_ns == 500_000_000

    def test_writeback_interval(self):
        for never in (None, 0, 0.0):
            assert options(writeback_interval=never).writeback_ns == 0
        assert options(writeback_interval=30).writeback_ns == 30 * 10**9
        assert options(writeback_interval=np.float32(0.5)).writeback_ns == 500_000_000
        assert options(writeback_interval=np.int64(2)).writeback_ns == 2 * 10**9
        # Below that the writer would do nothing but wake up.
        assert options(writeback_interval=1e-9).writeback_ns == 10_000_000
        assert options(writeback_interval=2.0**63 / 1e9 - 1).writeback_ns < 2**63

    def test_prefetch_off_and_a_name(self):
        found = options(prefetch="off", name="my array")
        assert (found.read_ahead, found.name) == (False, b"my array")

    def test_as_many_blocks_as_there_are_numbers_for(self):
        assert options((2**32 - 1) * PAGE_SIZE, block_size=PAGE_SIZE).block_size == PAGE_SIZE

    def test_the_largest_limit(self):
        assert options(resident_limit=2**63 - 1).limit == 2**63 - 1


class TestRefused:
    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"mode": "w"}, r"mode must be 'r' .* not 'w'"),
            ({"mode": "rw+"}, "not 'rw"),
            ({"prefetch": True}, "prefetch must be 'auto' or 'off', not True"),
            ({"store_timeout": -1}, "store_timeout must be .* not -1"),
            ({"store_timeout": math.nan}, "not nan"),
            ({"store_timeout": math.inf}, "finite"),
            ({"writeback_interval": -1}, "0 or None for never, not negative, not -1"),
            ({"writeback_interval": -math.inf}, "finite .* not -inf"),
            ({"writeback_interval": math.nan}, "writeback_interval must be .* not nan"),
            ({"writeback_interval": math.inf}, "finite .* not inf"),
            ({"writeback_interval": 10**400}, "finite .* not 1000"),
            ({"writeback_interval": 2.0**63 / 1e9}, "finite .* not 9223372036"),
            ({"name": "a]"}, "printable ASCII"),
            ({"block_size": 5000}, "a power of two from 4096 .* to 2097152"),
            ({"block_size": PAGE_SIZE // 2}, f"not {PAGE_SIZE // 2}"),
            ({"block_size": "4MiB"}, "not '4MiB'"),
            ({"block_size": 0}, "not 0"),
            ({"block_size": -65536}, "not -65536"),
            ({"block_size": "64x"}, "block_size '64x' is not a number of bytes"),
            ({"block_size": 10**30}, f"a power of two from .* not {10**30}"),
            (
                {"resident_limit": 10**30},
                f"{10**30} is larger .* at most {2**63 - 1}",
            ),
            ({"resident_limit": "9" * 26}, f"resident_limit '{'9' * 26}' is larger than any"),
            ({"resident_limit": 2**63}, "8 EiB"),
            ({"resident_limit": "lots"}, "resident_limit 'lots' is not"),
            (
                {"resident_limit": "128KiB"},
                "'128KiB' is less than four blocks of 64 KiB: raise it to at least 256 KiB, or use "
                "blocks of at most 32 KiB",
            ),
            ({"resident_limit": (1 << 18) - 1}, "262143 is less .* at most 32 KiB"),
            ({"resident_limit": 5000}, "5000 is less than four .* at least 256 KiB$"),
            ({"resident_limit": 0}, "0 is less than four"),
            ({"resident_limit": -1}, "-1 is less than four"),
        ],
    )
    def test_value_and_remedy(self, changes, reason):
        with pytest.raises(ValueError, match=reason):
            options(**changes)

    @pytest.mark.parametrize(
        ("nbytes", "block", "remedy"),
        [
            (2**32 * PAGE_SIZE, PAGE_SIZE, "use block_size='8 KiB' or larger"),
            (10**15, 65536, "use block_size='256 KiB' or larger"),
            (2**63, 65536, "page parts of it"),
        ],
    )
    def test_too_many_blocks(self, nbytes, block, remedy):
        with pytest.raises(ValueError, match=remedy):
            options(nbytes, block_size=block)
        if "block_size" in remedy:
            smallest = remedy.split("'")[1]
            assert options(nbytes, block_size=smallest)

    @pytest.mark.parametrize("changes", [{"resident_limit": 1.5}, {"block_size": None}])
    def test_types(self, changes):
        with pytest.raises(TypeError, match="must be a number of bytes or a string"):
            options(**changes)

    @pytest.mark.parametrize("value", ["30", "30s", True, np.True_, b"1", [1.0], 1j])
    def test_writeback_interval_is_a_number(self, value):
        with pytest.raises(TypeError, match="writeback_interval must be a number") as raised:
            options(writeback_interval=value)
        assert repr(value) in str(raised.value)

    def test_store_timeout_is_a_number(self):
        with pytest.raises(TypeError, match="must be a number of seconds, not '5s'"):
            options(store_timeout="5s")


class TestServing:
    def test_a_file_natively_and_others_by_a_helper(self, tmp_path):
        # Also a subclass: what it overrides would not be asked.
        class Decrypted(FileStore):
            def read_into(self, offset, buffer):
                raise NotImplementedError

        path = tmp_path / "file"
        path.write_bytes(b"x")
        with FileStore(path) as store, FaultyStore(path) as faulty, Decrypted(path) as other:
            assert [is_native(each) for each in (store, faulty, other)] == [True, True, False]
        assert not is_native(BytesStore(b"x"))


class TestStores:
    def test_a_file(self, tmp_path):
        (tmp_path / "file").write_bytes(b"x")
        with FileStore(tmp_path / "file") as store:
            check_store(store)

    def test_any_other(self):
        check_store(BytesStore(b"x"))

    @pytest.mark.parametrize("path", ["/data/x", pytest.param(__import__("pathlib").Path("/y"))])
    def test_a_path(self, path):
        with pytest.raises(TypeError, match=r"FileStore\('/\w+.*pagemove.open_array"):
            check_store(path)

    def test_what_is_in_memory_already(self):
        with Memory(PAGE_SIZE) as memory:
            for wrong in (np.zeros(3), memory, b"x", bytearray(1), memoryview(b"x")):
                with pytest.raises(TypeError, match=r"in memory already.*numpy\.save.*open_array"):
                    check_store(wrong)

    def test_anything_else(self):
        with pytest.raises(TypeError, match=r"must be a pagemove\.stores\.Store, not NoneType"):
            check_store(None)


@pytest.mark.parametrize(
    ("nbytes", "error", "message"),
    [
        (None, TypeError, r"nbytes of _Sized must be a number of bytes, .* not None"),
        ("4096", TypeError, r"not '4096'"),
        (1e6, TypeError, r"not 1000000\.0"),
        (True, TypeError, r"not True"),
        (-1, ValueError, r"nbytes of _Sized is -1"),
    ],
)
def test_a_store_that_does_not_know_its_size(nbytes, error, message):
    class _Sized(BytesStore):
        @property
        def nbytes(self):
            return nbytes

    with pytest.raises(error, match=message):
        check_store(_Sized(b""))
