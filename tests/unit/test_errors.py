import copy
import errno
import pickle

import pytest

import pagemove
from pagemove.errors import (
    DestinationMapped,
    PageShared,
    RemapError,
    SourceHole,
    StoreError,
    UnsupportedError,
    describe,
    remap_error,
    store_error,
)

KINDS = [RemapError, SourceHole, DestinationMapped, PageShared, UnsupportedError]


@pytest.mark.parametrize("kind", KINDS)
def test_is_an_os_error_with_progress(kind):
    error = kind(errno.EBUSY, "text", moved=4096, index=3, address=0x1000)
    assert isinstance(error, OSError)
    assert isinstance(error, RemapError)
    assert (error.errno, error.strerror) == (errno.EBUSY, "text")
    assert (error.moved, error.index, error.address) == (4096, 3, 0x1000)
    assert str(error) == f"[Errno {errno.EBUSY}] text"


def test_nothing_moved_and_no_position_by_default():
    error = RemapError(errno.EINVAL, "text")
    assert (error.moved, error.index, error.address) == (0, None, None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("duplicate", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy])
def test_travels_between_processes_with_its_progress(kind, duplicate):
    error = duplicate(kind(errno.ENOENT, "text", moved=8192, index=0, address=0x7F00_0000_0000))
    assert type(error) is kind
    assert (error.errno, error.strerror) == (errno.ENOENT, "text")
    assert (error.moved, error.index, error.address) == (8192, 0, 0x7F00_0000_0000)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOENT, SourceHole),
        (errno.EEXIST, DestinationMapped),
        (errno.EBUSY, PageShared),
        (errno.EINVAL, RemapError),
        (errno.EFAULT, RemapError),
        (errno.ENOMEM, RemapError),
        (errno.EPERM, RemapError),
    ],
)
def test_errno_becomes_its_class(code, kind):
    error = remap_error(code, "text", moved=1, index=2, address=3)
    assert type(error) is kind
    assert (error.errno, error.moved, error.index, error.address) == (code, 1, 2, 3)


def test_caught_by_the_class_of_the_errno_or_by_os_error():
    with pytest.raises(OSError, match="text"):
        raise remap_error(errno.ENOENT, "text")
    # Not FileNotFoundError: nothing here is about a file.
    assert not isinstance(remap_error(errno.ENOENT, "text"), FileNotFoundError)


def test_describe():
    assert describe(errno.EBUSY) == "EBUSY (Device or resource busy)"
    assert describe(9999).startswith("9999 (")


class TestStoreError:
    def made(self, **changes):
        known = {"store": "/data/x", "operation": "read", "offset": 4096, "remedy": "mend it"}
        return store_error(changes.pop("errno", errno.EIO), **{**known, **changes})

    def test_is_an_os_error_that_says_where(self):
        error = self.made()
        assert isinstance(error, OSError)
        assert not isinstance(error, RemapError)
        assert (error.errno, error.store, error.operation) == (errno.EIO, "/data/x", "read")
        assert error.offset == 4096
        assert str(error) == (
            "[Errno 5] cannot read /data/x at byte 4096: EIO (Input/output error); mend it"
        )

    def test_says_how_often_it_was_tried(self):
        assert "at byte 4096 in 12 tries: EIO" in str(self.made(tries=12))

    def test_fewer_bytes_than_there_should_be(self):
        error = self.made(errno=0, operation="write")
        assert error.errno == errno.EIO
        assert "cannot write /data/x at byte 4096: fewer bytes than" in str(error)

    def test_of_a_flush_has_no_place(self):
        error = self.made(operation="flush", offset=None)
        assert error.offset is None
        assert "cannot make durable /data/x: EIO" in str(error)

    # ENOENT: OSError itself would become a FileNotFoundError.
    @pytest.mark.parametrize("code", [errno.EIO, errno.ENOENT, errno.ENOSPC])
    @pytest.mark.parametrize("duplicate", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy])
    def test_travels_between_processes(self, code, duplicate):
        error = self.made(errno=code, operation="write", offset=0)
        other = duplicate(error)
        assert type(other) is StoreError
        assert str(other) == str(error)
        for name in ("errno", "strerror", "store", "operation", "offset"):
            assert getattr(other, name) == getattr(error, name)


@pytest.mark.parametrize("kind", [*KINDS, StoreError])
def test_published_and_documented(kind):
    assert getattr(pagemove, kind.__name__) is kind
    assert kind.__name__ in pagemove.__all__
    assert kind.__doc__
