"""What can be missing, and the exact remedy for each."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass

from pagemove import limits
from pagemove.cgroups import read as read_text
from pagemove.kernel import DEFECTS, UFFD_FEATURES, KernelFeatures, Problem

DEVICE = "/dev/userfaultfd"

#: Instead of an errno: the process would have been killed.
KILLED = -1

_NEEDED_FEATURES = ("PAGEFAULT_FLAG_WP", "MOVE")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a remedy depends on, beside what was found.

    Attributes
    ----------
    errors : dict of str to int
        By the name of what was tried the errno it failed with, 0 or `KILLED`.
    contained : bool
        Whether only the host's root can change the kernel's settings: in a container, or another
        user namespace.
    nodev : bool
        Whether devices do not work in the file system of /dev/userfaultfd.
    silent : bool
        Whether a userfaultfd could be opened, but UFFDIO_API was refused.
    """

    errors: dict[str, int]
    contained: bool = False
    nodev: bool = False
    silent: bool = False

    @classmethod
    def here(cls, errors: dict[str, int], *, silent: bool = False) -> Surroundings:
        """Look at those of this process."""
        nodev = bool(_flags(DEVICE) & os.ST_NODEV)
        return cls(errors, contained=_is_contained(), nodev=nodev, silent=silent)

    def as_root(self, command: str) -> str:
        """Say who has to run a command."""
        return f"{'on the host, ' if self.contained else ''}as root: {command}"


def _is_contained() -> bool:
    if _flags("/proc/sys") & os.ST_RDONLY:
        return True
    try:
        with open("/proc/self/uid_map") as file:
            return file.read().split() != ["0", "0", "4294967295"]
    except OSError:
        return False


def _flags(path: str) -> int:
    """Return the flags of the mount that a path is on."""
    try:
        return os.statvfs(path).f_flag
    except OSError:
        return 0


def problems_of(found: KernelFeatures, around: Surroundings) -> Iterator[Problem]:
    """Name all that is missing in `found`."""
    yield from _door_problems(found, around)
    yield from _deadly_problems(around.errors)
    for name, since in UFFD_FEATURES.items():
        if found.uffd_features and name not in found.uffd_features:
            yield Problem(
                name,
                f"this kernel's userfaultfd does not have UFFD_FEATURE_{name}",
                f"boot Linux {since} or later, built with what the feature is for",
                needed=name in _NEEDED_FEATURES,
            )
    if "CVE-2024-27007" in found.defects:
        yield Problem(
            "CVE-2024-27007",
            f"Linux {found.release} has this defect: {DEFECTS['CVE-2024-27007']}",
            "boot Linux 6.8.8 or later",
            needed=True,
        )
    if found.paging == "mremap":
        yield Problem(
            "paging_by_move",
            "paged memory does without UFFDIO_MOVE: blocks leave by mremap, which keeps other "
            "faults waiting and does not see I/O under way to them, and arrive by copy",
            "boot Linux 6.8.8 or later",
        )
    yield from _proc_problems(found, around.errors)
    if not found.guard_regions and around.errors["guard_regions"] != KILLED:
        yield Problem(
            "guard_regions",
            "madvise(2) does not know MADV_GUARD_INSTALL",
            "boot Linux 6.13 or later",
        )
    if not found.vma_names and around.errors["vma_names"] != KILLED:
        yield Problem(
            "vma_names",
            "anonymous mappings cannot have names in /proc/self/maps",
            "boot a kernel built with CONFIG_ANON_VMA_NAME=y (Linux 5.17 or later)",
        )
    if not found.io_uring and around.errors["io_uring"] != KILLED:
        yield _without_rings(around)
    yield from _setting_problems(found, around)


def _without_rings(around: Surroundings) -> Problem:
    error = around.errors["io_uring"]
    disabled = read_text("/proc/sys/kernel/io_uring_disabled").strip()
    if error == errno.EPERM and disabled not in ("", "0"):
        why = f"kernel.io_uring_disabled is {disabled}"
        remedy = around.as_root("sysctl kernel.io_uring_disabled=0")
    elif error in (errno.EPERM, errno.EACCES, errno.ENOSYS):
        why = f"io_uring_setup(2) is refused ({errno.errorcode[error]}), as by a seccomp filter"
        remedy = (
            "allow io_uring_setup and io_uring_enter in the seccomp filter, or boot a kernel built "
            "with CONFIG_IO_URING=y"
        )
    else:
        why = f"io_uring_setup(2) fails: {_as_errno(error)}"
        remedy = "boot Linux 6.0 or later"
    return Problem(
        "io_uring",
        f"{why}: cold blocks of files are read by threads, which costs more CPU time",
        remedy,
        errno=error,
    )


_SYSTEM_CALLS = {
    "pagemap_scan": "ioctl(2) with PAGEMAP_SCAN",
    "procmap_query": "ioctl(2) with PROCMAP_QUERY",
    "guard_regions": "madvise(2) with MADV_GUARD_INSTALL",
    "vma_names": "prctl(2) with PR_SET_VMA_ANON_NAME",
    "io_uring": "io_uring_setup(2)",
}


def _deadly_problems(errors: dict[str, int]) -> Iterator[Problem]:
    for name, call in _SYSTEM_CALLS.items():
        if errors[name] == KILLED:
            yield Problem(
                name,
                f"{call}: the process's seccomp filter kills the caller",
                f"allow {call} in the seccomp filter, or have it return ENOSYS",
                needed=True,
                errno=errno.EPERM,
            )


def _proc_problems(found: KernelFeatures, errors: dict[str, int]) -> Iterator[Problem]:
    # A kernel that does not know an ioctl says ENOTTY.
    if found.seccomp and errors["pagemap_scan"] == errno.ENOSYS:
        call = _SYSTEM_CALLS["pagemap_scan"]
        yield Problem(
            "pagemap_scan",
            f"{call} is hidden by the process's seccomp filter (ENOSYS): moving pages works, but "
            "not with RAP_ALLOW_SRC_HOLES, and page states know neither huge pages nor the page of "
            "zeros",
            f"allow {call} in the seccomp filter",
        )
    elif not found.pagemap_scan and errors["pagemap_scan"] in (errno.EACCES, errno.EPERM):
        yield Problem(
            "pagemap_scan",
            "/proc/self/pagemap may not be opened, because the process is not dumpable (it has "
            "changed its user, or its program may not be read) or a policy denies it: moving pages "
            "works, but neither with RAP_ALLOW_SRC_HOLES nor page_states",
            "after the change of user call prctl(PR_SET_DUMPABLE, 1), in Python "
            "ctypes.CDLL(None).prctl(4, 1, 0, 0, 0); or start the process as that user",
            errno=errors["pagemap_scan"],
        )
    elif not found.pagemap_scan and errors["pagemap_scan"] != KILLED:
        yield Problem(
            "pagemap_scan",
            "the PAGEMAP_SCAN ioctl of /proc/self/pagemap does not work: no looking for holes, "
            "and page states know neither huge pages nor the page of zeros",
            _with_proc("boot Linux 6.7 or later with CONFIG_PROC_PAGE_MONITOR=y"),
            needed=True,
        )
    if not found.procmap_query and errors["procmap_query"] != KILLED:
        yield Problem(
            "procmap_query",
            "/proc/self/maps has no PROCMAP_QUERY ioctl: mappings are looked up by reading it all",
            _with_proc("boot Linux 6.11 or later"),
        )


def _with_proc(remedy: str) -> str:
    """Say what is missing first: without procfs nothing is known of the kernel."""
    return remedy if os.path.exists("/proc/self") else "mount procfs: mount -t proc proc /proc"


def _with_sys(remedy: str) -> str:
    return remedy if os.path.exists("/sys/kernel") else "mount sysfs: mount -t sysfs sysfs /sys"


def _setting_problems(found: KernelFeatures, around: Surroundings) -> Iterator[Problem]:
    if found.thp in ("", "never"):
        yield Problem(
            "huge_pages",
            "transparent huge pages are "
            + ("switched off" if found.thp else "not to be found")
            + ": Memory(huge_pages=True) gets ordinary pages",
            around.as_root("echo madvise > /sys/kernel/mm/transparent_hugepage/enabled")
            if found.thp
            else _with_sys("boot a kernel built with CONFIG_TRANSPARENT_HUGEPAGE=y"),
        )
    if not found.swap:
        yield Problem(
            "swap",
            "no swap space: nothing is ever swapped out (moving pages does not need it)",
            _with_proc(
                around.as_root(
                    "fallocate -l 1G /swapfile && chmod 600 /swapfile && mkswap /swapfile && "
                    "swapon /swapfile"
                )
            ),
        )
    if not found.ksm:
        yield Problem(
            "ksm",
            "the kernel does not merge equal pages (moving pages does not need it)",
            _with_sys("boot a kernel built with CONFIG_KSM=y"),
        )
    if found.max_map_count and found.vma_count * 10 > found.max_map_count * 9:
        yield Problem(
            "max_map_count",
            f"the process has {found.vma_count} mappings of at most {found.max_map_count}",
            around.as_root(f"sysctl -w vm.max_map_count={max(4 * found.max_map_count, 262144)}"),
            errno=errno.ENOMEM,
        )


_SECCOMP_REMEDY = (
    "allow the system call userfaultfd in the seccomp filter: put "
    '{"names": ["userfaultfd"], "action": "SCMP_ACT_ALLOW"} into "syscalls" of the profile and '
    "start with docker run --security-opt seccomp=PROFILE.json (to try it out: --security-opt "
    "seccomp=unconfined); in a systemd unit: SystemCallFilter=userfaultfd mincore"
)


#: Some filters look at the arguments of ioctl(2).
_API_REMEDY = "allow ioctl(2) with UFFDIO_API in the seccomp filter"


def _refusal(found: KernelFeatures, around: Surroundings, error: int) -> tuple[str, str]:
    """Say why there is no userfaultfd, and what helps."""
    if error == KILLED:
        return "the process's seccomp filter kills the caller", (
            f"{_SECCOMP_REMEDY}; and {_API_REMEDY}"
        )
    if around.silent and found.seccomp:
        return (
            f"it opens, but UFFDIO_API is refused by the process's seccomp filter "
            f"({os.strerror(error)})",
            _API_REMEDY,
        )
    if error in (errno.EPERM, errno.EACCES) and found.seccomp:
        return "refused by the process's seccomp filter", _SECCOMP_REMEDY
    if error in (errno.EPERM, errno.EACCES):
        return (
            "refused by a security module (the kernel itself allows it to everybody, and there is "
            "no seccomp filter)",
            "allow the process userfaultfd in the policy: SELinux class anon_inode, permission "
            "create (ausearch -m avc -c python | audit2allow -M pagemove)",
        )
    if error == errno.ENOSYS and found.unprivileged_userfaultfd is not None:
        # The kernel has the sysctl, so it has the call: the ENOSYS is a filter's.
        return "hidden by the process's seccomp filter (ENOSYS, yet the kernel has it)", (
            _SECCOMP_REMEDY
        )
    if error == errno.ENOSYS:
        return "not in this kernel", _with_proc("boot a kernel built with CONFIG_USERFAULTFD=y")
    if error == errno.EINVAL:
        return (
            "this kernel does not know UFFD_USER_MODE_ONLY",
            "boot Linux 5.11 or later, and 6.8.8 or later to move pages",
        )
    if error in (errno.EMFILE, errno.ENFILE):
        behind = limits.behind(OSError(error, ""))
        texts = "".join(f": {limit.text}" for limit in behind)
        remedy = "; or ".join(("close descriptors", *(limit.remedy for limit in behind)))
        return f"no descriptor is free{texts}", remedy
    return f"failed: {os.strerror(error)}", "see userfaultfd(2)"


def _door_problems(found: KernelFeatures, around: Surroundings) -> Iterator[Problem]:
    error = around.errors["userfaultfd_user_mode"]
    if error:
        why, remedy = _refusal(found, around, error)
        yield Problem(
            "userfaultfd_user_mode",
            f"userfaultfd(2) with UFFD_USER_MODE_ONLY: {why}",
            remedy,
            # The library tries this way before the device, and would not live to try that.
            needed=not found.userfaultfd_device or error == KILLED,
            errno=_as_errno(error),
        )
    error = around.errors["userfaultfd_syscall"]
    if error and found.userfaultfd_user_mode and error == errno.EPERM:
        yield Problem(
            "userfaultfd_syscall",
            "userfaultfd(2) only with UFFD_USER_MODE_ONLY, because vm.unprivileged_userfaultfd is "
            f"{found.unprivileged_userfaultfd} and the process lacks CAP_SYS_PTRACE (moving pages "
            "needs no more)",
            around.as_root("sysctl -w vm.unprivileged_userfaultfd=1"),
            errno=error,
        )
    elif error:
        why, remedy = _refusal(found, around, error)
        yield Problem(
            "userfaultfd_syscall",
            f"userfaultfd(2): {why}",
            remedy,
            needed=error == KILLED,
            errno=_as_errno(error),
        )
    error = around.errors["userfaultfd_device"]
    if error:
        if around.silent:
            why, remedy = _refusal(found, around, error)
            missing = f"cannot be used: {why}"
        else:
            missing, remedy = _device_refusal(around, error)
        yield Problem(
            "userfaultfd_device",
            f"{DEVICE} {missing}",
            remedy,
            needed=error == KILLED,
            errno=_as_errno(error),
        )


def _as_errno(error: int) -> int:
    return errno.EPERM if error == KILLED else error


def _device_refusal(around: Surroundings, error: int) -> tuple[str, str]:
    """Say why /dev/userfaultfd cannot be used, and what helps."""
    if error == KILLED:
        return "cannot be used: the process's seccomp filter kills the caller", _SECCOMP_REMEDY
    if error == errno.ENOENT:
        return (
            "does not exist",
            "boot Linux 6.1 or later; in a container: docker run --device /dev/userfaultfd",
        )
    if error == errno.EACCES and around.nodev:
        return (
            "is on a file system that is mounted nodev: devices do not work there",
            "start the container with a device of its own: docker run --device /dev/userfaultfd"
            if around.contained
            else around.as_root(f"mount -o remount,dev {_mount_point(DEVICE)}"),
        )
    if error == errno.EACCES:
        return (
            "may not be opened by this user",
            around.as_root(
                "chmod 666 /dev/userfaultfd (to keep it: a udev rule with "
                'KERNEL=="userfaultfd", MODE="0666")'
            ),
        )
    if error == errno.EPERM:
        return (
            "is refused by the container's device rules",
            "docker run --device /dev/userfaultfd",
        )
    return f"failed: {os.strerror(error)}", "see userfaultfd(2)"


def _mount_point(path: str) -> str:
    while not os.path.ismount(path):
        path = os.path.dirname(path)
    return path
