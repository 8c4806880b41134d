"""What a test needs of the machine: a name, a probe, and for swap and KSM the means to provide it.

A test says so as data: ``@pytest.mark.needs("move", "thp")``. ``tests/conftest.py`` skips it with
the reason where a probe gives one; with PAGEMOVE_REQUIRE_FEATURES=1 it fails it instead, except for
what is in `MAY_LACK`.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from pagemove import HUGE_PAGE_SIZE, features
from support import servers, system

#: Paged memory does here as it does on kernels without UFFDIO_MOVE.
WITHOUT_MOVE = os.environ.get("PAGEMOVE_TEST_WITHOUT_MOVE", "") not in ("", "0")

#: Files are read by threads, as where a container refuses io_uring.
WITHOUT_URING = os.environ.get("PAGEMOVE_TEST_WITHOUT_URING", "") not in ("", "0")

SWAP_BYTES = 256 << 20
_KSM = Path("/sys/kernel/mm/ksm")
_KSM_HURRY = {"pages_to_scan": "5000", "sleep_millisecs": "5", "run": "1"}
# The kernel's own. Who finds the others at work, finds what tests that were killed have left.
_KSM_CALM = {"pages_to_scan": "100", "sleep_millisecs": "20", "run": "0"}
_KHUGEPAGED_SLEEP = Path("/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs")
_HOUR, _KHUGEPAGED_CALM = 3_600_000, 10_000  # in milliseconds
_HUGETLB_PAGES = Path("/proc/sys/vm/nr_hugepages")

#: What gives its reason for missing, or None if it is there.
Probe = Callable[[], "str | None"]

#: One of several processes that run tests at the same time; `provide` is what the first one calls.
_SHARED = "PYTEST_XDIST_WORKER" in os.environ

_undo = contextlib.ExitStack()


def _move() -> str | None:
    found = features()
    if found.remap_anon_pages:
        return None
    return next(problem.missing for problem in found.problems if problem.needed)


def _without_move() -> str | None:
    return "a kernel that can move pages" if "MOVE" in features().uffd_features else None


def _paging() -> str | None:
    if features().paging:
        return None
    return "no userfaultfd with write protection can be opened"


def _paging_by_move() -> str | None:
    if WITHOUT_MOVE:
        return "PAGEMOVE_TEST_WITHOUT_MOVE is set"
    if features().paging == "move":
        return None
    return "paged memory does without UFFDIO_MOVE here"


def _feature(name: str) -> Probe:
    def probe() -> str | None:
        return None if name in features().uffd_features else f"no UFFD_FEATURE_{name}"

    return probe


@functools.cache
def _thp() -> str | None:
    """Find huge pages, and keep khugepaged from making more while the tests look at small ones.

    It comes at once when its sleep is set, and when the first process has memory for it: both are
    here, not in the midst of a test. From then on it knows this process, and only its sleep ends.
    """
    if not HUGE_PAGE_SIZE:
        return "a kernel without transparent huge pages"
    if features().thp not in ("always", "madvise"):
        return "transparent huge pages are off"
    with contextlib.suppress(OSError):
        before = int(_KHUGEPAGED_SLEEP.read_text())
        _KHUGEPAGED_SLEEP.write_text(str(_HOUR))
        calm = _KHUGEPAGED_CALM if before == _HOUR else before
        if not _SHARED:  # the first of several processes to end would wake it for the others
            _undo.callback(_KHUGEPAGED_SLEEP.write_text, str(calm))
    with mmap.mmap(-1, 2 * HUGE_PAGE_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as some:
        some.madvise(mmap.MADV_HUGEPAGE)
    return None


def _guard() -> str | None:
    return None if features().guard_regions else "no MADV_GUARD_INSTALL (Linux 6.13)"


def _userfaultfd_missing() -> str | None:
    found = features()
    doors = (found.userfaultfd_user_mode, found.userfaultfd_syscall, found.userfaultfd_device)
    return None if any(doors) else "no userfaultfd can be opened"


def _kernel_faults() -> str | None:
    found = features()
    if found.userfaultfd_syscall or found.userfaultfd_device:
        return None
    return "userfaultfd is for faults of user mode only"


def _root() -> str | None:
    return None if os.geteuid() == 0 else "not root"


def _fork() -> str | None:
    return None if hasattr(os, "fork") else "no fork"


def _two_cpus() -> str | None:
    return None if len(os.sched_getaffinity(0)) > 1 else "one CPU only"


def _vma_names() -> str | None:
    return None if features().vma_names else "a kernel without CONFIG_ANON_VMA_NAME"


def _pagemap_scan() -> str | None:
    return None if features().pagemap_scan else "no PAGEMAP_SCAN (Linux 6.7)"


def _stale_eagain() -> str | None:
    has = "stale-EAGAIN" in features().defects
    return None if has else "a kernel without the stale-EAGAIN defect"


def _io_uring() -> str | None:
    try:
        with system.Ring():
            return None
    except OSError as error:
        return f"io_uring cannot be used: {error.strerror}"


@functools.cache
def _swap() -> str | None:
    """Find swap space, or make some for as long as the tests run."""
    if Path("/proc/swaps").read_text().count("\n") > 1:
        return None
    if os.geteuid() != 0:
        return "no swap, and not root, so none can be made"
    last = "no directory to make it in"
    for directory in (tempfile.gettempdir(), "/var/tmp"):
        path = Path(directory) / f"pagemove-tests-{os.getpid()}.swap"
        try:
            with path.open("xb") as file:
                path.chmod(0o600)
                os.posix_fallocate(file.fileno(), 0, SWAP_BYTES)
            subprocess.run(["mkswap", path], check=True, capture_output=True)
            subprocess.run(["swapon", path], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            path.unlink(missing_ok=True)
            last = str(getattr(error, "stderr", None) or error)
            continue
        _undo.callback(path.unlink, missing_ok=True)
        _undo.callback(_swap_off, path)
        features(refresh=True)
        return None
    return f"no swap, and none could be made: {last}"


def _swap_off(path: Path) -> None:
    subprocess.run(["swapoff", path], check=False, capture_output=True)


@functools.cache
def _ksm() -> str | None:
    """Find KSM running, or start it for as long as the tests run."""
    if not _KSM.is_dir():
        return "a kernel without KSM"
    try:
        before = {name: (_KSM / name).read_text().strip() for name in _KSM_HURRY}
        before = _KSM_CALM if before == _KSM_HURRY else before
        for name, value in _KSM_HURRY.items():
            (_KSM / name).write_text(value)
            _undo.callback((_KSM / name).write_text, before[name])
    except OSError as error:
        return None if _ksm_runs() else f"KSM does not run and cannot be started: {error.strerror}"
    return None


def _ksm_runs() -> bool:
    return (_KSM / "run").read_text().strip() == "1"


@functools.cache
def _hugetlb() -> str | None:
    """Find a free hugetlb page, or reserve some for as long as the tests run."""
    try:
        before = _HUGETLB_PAGES.read_text()
        if system.hugetlb_free():
            return None
        _HUGETLB_PAGES.write_text(str(int(before) + 4))
    except OSError as error:
        return f"no hugetlb pages: {error.strerror}"
    _undo.callback(_HUGETLB_PAGES.write_text, before)
    return None if system.hugetlb_free() else "no hugetlb pages could be reserved"


#: Every name that a test may give to ``needs``.
NEEDS: dict[str, Probe] = {
    "cachestat": system.no_cachestat,
    "dask": servers.no_module("dask"),
    "fork": _fork,
    "faiss": servers.no_module("faiss"),
    "fsspec": servers.no_module("fsspec", "aiohttp"),
    "gevent": servers.no_module("gevent"),
    "guard": _guard,
    "gunicorn": servers.no_module("gunicorn"),
    "hugetlb": _hugetlb,
    "io_uring": _io_uring,
    "kernel_faults": _kernel_faults,
    "ksm": _ksm,
    "move": _move,
    "pagemap_scan": _pagemap_scan,
    "notebook": servers.no_module("nbclient", "ipykernel"),
    "numba": servers.no_module("numba"),
    "numexpr": servers.no_module("numexpr"),
    "obstore": servers.no_module("obstore"),
    "opencv": servers.no_module("cv2"),
    "paging": _paging,
    "paging_by_move": _paging_by_move,
    "pandas": servers.no_module("pandas"),
    "pillow": servers.no_module("PIL"),
    "poison": _feature("POISON"),
    "polars": servers.no_module("polars", "pyarrow"),
    "ray": servers.no_module("ray"),
    "redis": servers.no_redis,
    "root": _root,
    "s3": servers.no_module("s3fs", "moto"),
    "scipy": servers.no_module("scipy", "h5py"),
    "seccomp": system.no_seccomp,
    "skimage": servers.no_module("skimage"),
    "sklearn": servers.no_module("sklearn"),
    "stale_eagain": _stale_eagain,
    "statsmodels": servers.no_module("statsmodels"),
    "swap": _swap,
    "tensorstore": servers.no_module("tensorstore"),
    "thp": _thp,
    "torch": servers.no_module("torch"),
    "two_cpus": _two_cpus,
    "uvicorn": servers.no_module("uvicorn"),
    "userfaultfd_missing": _userfaultfd_missing,
    "vma_names": _vma_names,
    "without_move": _without_move,
    "web": servers.no_module("aiohttp"),
    "wp_async": _feature("WP_ASYNC"),
    "xarray": servers.no_module("xarray", "h5netcdf", "zarr", "dask"),
    "zstandard": servers.no_module("zstandard"),
}

#: What even the project's own machines may lack: their kernel, or where they run, may forbid it.
#: So may a test of one kernel's defect on another kernel. PyTorch brings 5 GB with it.
MAY_LACK = frozenset({"ksm", "stale_eagain", "swap", "torch", "without_move"}) | (
    {"io_uring"} if WITHOUT_URING else set()
)


def missing(name: str) -> str | None:
    """Say why the machine lacks `name`, or None where it has it or could be given it."""
    return NEEDS[name]()


def provide_for_all() -> None:
    """Provide what several processes of tests share, before they begin."""
    _thp()


def undo() -> None:
    """Take back what was provided: swap off, KSM as before."""
    _undo.close()
