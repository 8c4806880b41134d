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
    UnsupportedError,
    describe,
    remap_error,
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


@pytest.mark.parametrize("kind", KINDS)
def test_published_and_documented(kind):
    assert getattr(pagemove, kind.__name__) is kind
    assert kind.__name__ in pagemove.__all__
    assert kind.__doc__
