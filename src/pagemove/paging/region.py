"""A region of memory that is paged: `PagedMemory`."""

from __future__ import annotations

import errno
import os
from typing import Any

from pagemove import limits
from pagemove.paging import forking, hosts, refusals, registry, tracing, working_set
from pagemove.paging.available import settle, withdraw
from pagemove.paging.blocks import Blocks
from pagemove.paging.budget import Budget
from pagemove.paging.closing import Closing
from pagemove.paging.compression import CompressedMemory
from pagemove.paging.exits import save_at_exit
from pagemove.paging.options import (
    MODES,
    Checked,
    Fork,
    Limit,
    Mode,
    Prefetch,
    Size,
    check_store,
    checked,
)
from pagemove.paging.serving import file_lock, label_of, serving, store_of
from pagemove.paging.sizes import text_of
from pagemove.stores.base import Store
from pagemove.views import Viewable

# What a kernel that lacks something, or does not permit it, answers.
_UNSUPPORTED = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

_OF_THE_PAGER = frozenset(
    [
        "compressed",
        "counters",
        "discard",
        "failure_text",
        "failures",
        "for_arenas",
        "gather",
        "gatherable",
        "histogram",
        "inherit",
        "inherited",
        "lost",
        "pin_blocks",
        "reading",
        "recorded",
        "replay",
        "share_id",
        "shares_helper",
        "state_bytes",
        "store_stats",
        "unpin_blocks",
        "untouched",
    ]
)


class PagedMemory(Closing, Viewable):
    """A region of memory whose blocks are read from a store when they are first touched.

    To everything that uses it, NumPy, C extensions, system calls, it is ordinary private memory
    behind a plain pointer. When a limit is given and reached, blocks leave for others; those that
    were changed are written back first. It has the buffer protocol.

    Parameters
    ----------
    store : Store, optional
        Where the blocks come from. Of a `FileStore` the region keeps its own descriptor, so the
        store may be closed before it. Any other store is pickled, and served by a helper process
        that ends with its last region; its buffers, at most a quarter of the limit, are its own
        memory.
    nbytes : int, optional
        Instead of a store: memory of so many bytes, zero until written, whose blocks are kept
        compressed in this process while they are not resident; see Notes. The mode is then
        ``"r+"`` unless it is ``"c"``.
    store_limit : int or str, optional
        With `nbytes`: the most bytes of memory that compressed blocks take, beyond
        `resident_limit`. None: as many as it takes.
    spill : path-like, optional
        With `nbytes`: a directory, on a disk, for an unnamed file with the blocks that do not
        shrink, or for which `store_limit` has no room.
    resident_limit : int, str or Budget, optional
        The most bytes that are in memory at any moment, blocks on their way in and out included:
        ``"256MiB"``, ``"1.5 GiB"``, ``"100kB"``, or a number. At least four blocks. A `Budget`:
        all regions that are given it have so much together. ``"auto"``, or None: all regions of the
        process with that share half of the memory available; see Notes. ``"unlimited"``: none.
    block_size : int or str
        What is read and evicted as one: a power of two from the page size to 2 MiB. Large for
        sequential access, small where single items are picked at random.
    mode : {"r", "r+", "c"}
        ``"r"``: read-only. ``"r+"``: changes go to the store, which has to be writable. ``"c"``:
        changes stay private to the region; evicted ones are kept in an unnamed temporary file (in
        the directory that TMPDIR names), the store is never written.
    prefetch : {"auto", "off"}
        Whether blocks are read ahead of sequential and strided access.
    store_timeout : float
        Seconds for which a failing read or write is tried again, before it counts as failed.
    writeback_interval : float or None
        In mode ``"r+"``: seconds after which a changed block is written to the store though nothing
        makes it leave, at the latest; at least 0.01. None or 0: not before it leaves, or a flush.
        Over a store that does not outlive the process, as that for `nbytes`, it is ignored.
    name : str, optional
        As for `pagemove.Memory`: shown in /proc/self/maps where the kernel can.
    replay : path-like, optional
        A file that `record` has made: its blocks are read ahead in that order.
    fork : {"reopen", "message"}
        What a child made by `os.fork` has of a region of mode ``"r"``, or of compressed memory; see
        Notes.
    isolated : bool
        Whether the store is to have a helper process of its own; by default it shares one with
        others, see Notes. Of a file that the pager reads itself it changes nothing.

    Raises
    ------
    TypeError
        `store` is not a store, or cannot be pickled.
    ValueError
        An argument is out of range, or ``"r+"`` over a store that cannot be written; the message
        has the remedy.
    UnsupportedError
        userfaultfd or one of its features is missing.
    BlockingIOError
        Mode ``"r+"``, and another store or region writes the file: see `FileStore`.
    OSError
        No memory, address space, descriptors or threads for it; the message names the limit that
        is in the way (RLIMIT_NOFILE ..., vm.max_map_count, of a control group) and what to set.
        EACCES: /proc/self cannot be read, as after a change of user; the message has the remedy.

    Notes
    -----
    Where the main thread waits, to open or close a region or in one of its methods, signal handlers
    run, and one that raises (Control-C: KeyboardInterrupt) ends the wait. What was asked for ends
    between two blocks, as soon as the store has answered what it was asked last: blocks that were
    written are written, the others are changed as before, and the next `flush` does the rest. A
    `close` that is interrupted while it saves leaves the region open; after that it is closed.

    A block that cannot be read within `store_timeout` is poisoned: the thread that touches it gets
    SIGBUS, a system call EFAULT, and a message on standard error names store, offset and cause. It
    never reads zeros. `evict` clears that.

    In mode ``"r"`` a store by code that does not ask NumPy, C code with the pointer or a system
    call, is refused in the same way: SIGBUS, or EFAULT, and a message. Until the first is refused,
    one that comes in the very instant in which its block arrives for another thread, or ahead, may
    be missed: it is seen until the block leaves, and never reaches the store.

    What the pager opens is out of the program's reach. Code that closes all descriptors, as daemons
    do when they start, closes the end of a pipe by which the pager learns of it: then touching the
    region is SIGSEGV, with a message, changes are saved, and `flush` raises. Open it after that.

    Written in the background is not yet durable: the store has it, as it has a block that was
    evicted, and a program that is killed does not lose it. What the store does not take then stays
    changed and is tried again; `stats` counts that, and a message says so. SIGTERM with the default
    action saves before it ends the program: `pagemove.save_on_sigterm`.

    **One helper process** runs the stores of all regions, as long as it would be started alike for
    each: same user, directory, environment, limits, and modules. Each store is a copy of its own,
    with threads of its own, so one that hangs holds up its own region only; a store that holds the
    GIL holds up the others. If the process dies, or one of its stores does not release the GIL for
    2 s, each region goes on with a process of its own, and requests under way are made again. After
    that it is started anew once more, as one that was alone from the start. A store that cannot be
    started anew (`Store.restartable`) has its own from the start; those of `nbytes` share one with
    each other. With a limit on address space, data or CPU time (RLIMIT_AS, RLIMIT_DATA, RLIMIT_CPU)
    no process is shared. ``isolated=True`` is for a store that may end its process, that computes
    for long with the GIL held, or that changes what belongs to the process (directory, environment,
    POSIX locks).

    A core dump does not have the region's memory. With ``PAGEMOVE_CORE_DUMPS=1`` in the environment
    it has the blocks that are resident; writing it then takes time for the region's whole length.

    **Fork.** In a child made by `os.fork`, as `multiprocessing` does, a region of mode ``"r"`` is
    there at the same address, with nothing resident and a limit of its own of the same size: each
    child may have so much in memory. The first touch opens it. Its store is opened again, by its
    name or in a new helper process: a file that has changed since is an error. Until then the child
    has two threads more for all of them; ``fork="message"`` is for children that may have none, as
    before unshare(CLONE_NEWUSER). So it is with other modes, with stores that cannot be opened
    again, and in a child that is not forked by Python: the region is not there, touching it is
    SIGSEGV, after a message that names it, the object refuses new buffers, and closing it does
    nothing. Compressed memory is there with the contents of the moment, in any child, unless it has
    a `Budget` with others or the helper process: resident pages and compressed blocks are shared
    copy-on-write, each process has the limits and new files (`spill`) for itself, and nothing is
    pinned in the child.

    Where the process may open userfaultfd for user mode only, `kernel_faults` is False, and a
    system call on memory that is not resident fails with EFAULT: `pinned` and `save` are for that,
    and `KernelFaultsWarning` says so once.

    **Compressed memory** (`nbytes`). The pager's threads compress what leaves, with LZ4 or else
    zstd of the system (``liblz4.so.1``, ``libzstd.so.1``; ``pagemove doctor`` says which), after
    putting the bytes of 64-bit or 32-bit numbers together where that helps. A block of one repeated
    value takes 8 bytes; one that does not shrink by an eighth goes to `spill`, or else stays where
    it is: it is touched without faults, takes its length of `store_limit` and nothing of
    `resident_limit`, and is tried again now and then. ``stats().store`` says how many there are
    (``in_place_blocks``), and ``memory_nbytes`` what all of them take. Where
    `store_limit` is full, and `spill` takes nothing, what has changed stays in memory: `flush` and
    `evict` raise `StoreError` (ENOSPC), and a thread that touches a block for which another would
    have to leave waits for `store_timeout` and gets SIGBUS, with a message. Nothing of it outlives
    the process, so `close` saves nothing. Without either library a helper process keeps it
    (`stores.CompressedStore`, which needs zstandard).

    **The limit by default.** Available is the least of MemAvailable of the machine and of what
    memory.max and memory.high leave of each control group that the process is in; what the kernel
    can take back, such as page cache, counts as available, and what earlier regions without a
    limit of their own may still take does not. Regions that fit half of that together have no
    limit. Those opened beyond that share one budget: half of what is left then, at least 16 MiB,
    and four blocks for each. `resident_limit`, `budget` and the repr say what it is. It is computed
    for the first region, and anew once all have gone; in between it yields. Once a second a thread
    looks at what is available and at how long tasks waited for memory (pressure stall information,
    of the machine and of control groups of version 2): the budget shrinks by an eighth while less
    than an eighth of it is left to others, or tasks wait a tenth of the time and less than half of
    it is left; after ten seconds without that it grows again, up to what it was.

    A fault costs some microseconds and the read. Making a region over a file costs a mapping and a
    descriptor, since all such regions share their threads; neither depends on the length of the
    store. The first with a helper process takes as long as a Python interpreter takes to start;
    each has a thread for each request under way.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np, pagemove
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = file.write(bytes(range(256)) * 4096)
    ...     file.flush()
    ...     store = pagemove.stores.FileStore(file.name)
    ...     with store, pagemove.PagedMemory(store, resident_limit="256KiB") as region:
    ...         total = int(np.frombuffer(region, np.uint8).sum(dtype=np.uint64))
    ...         region.nbytes, total, region.stats().resident_nbytes <= 256 << 10
    (1048576, 133693440, True)
    """

    def __init__(
        self,
        store: Store | None = None,
        *,
        nbytes: int | None = None,
        resident_limit: Limit | None = None,
        block_size: Size = 65536,
        mode: Mode = "r",
        prefetch: Prefetch = "auto",
        store_timeout: float = 5.0,
        writeback_interval: float | None = 30.0,
        name: str | None = None,
        replay: str | os.PathLike[str] | None = None,
        fork: Fork = "reopen",
        store_limit: Size | None = None,
        spill: str | os.PathLike[str] | None = None,
        isolated: bool = False,
    ) -> None:
        if store is None and mode == "r":
            mode = "r+"  # there is nothing to read yet
        with limits.named():
            store = store_of(store, nbytes, block_size, store_limit, spill)
        check_store(store, mode)
        options = checked(
            store.nbytes,
            resident_limit=resident_limit,
            block_size=block_size,
            mode=mode,
            prefetch=prefetch,
            store_timeout=store_timeout,
            writeback_interval=writeback_interval,
            name=name,
            fork=fork,
            isolated=isolated,
        )
        self._payload = b""
        inherits = mode == "r" or isinstance(store, CompressedMemory)
        try:
            # Before anything is opened: it may be refused.
            order = working_set.load(replay, store.nbytes, options.block_size) if replay else b""
            self._open(store, options, again=fork == "reopen" and inherits)
        except BaseException:
            if options.share is not None:
                withdraw(options.share)
            raise
        if options.share is not None:
            settle(self, options.share)
        self._store = store
        self._label = self._known_as or label_of(store)
        self._asked = {
            "resident_limit": resident_limit,
            "block_size": options.block_size,
            "prefetch": prefetch,
            "store_timeout": store_timeout,
            "writeback_interval": writeback_interval,
            "name": name,
            "fork": fork,
            "isolated": options.isolated,
        }
        self._record = None
        self._mode = mode
        self._limit = options.limit
        self._budget = options.budget
        if options.budget is not None:
            options.budget._enter(self)
        self._chosen = options.chosen
        self._told = 0  # sequence number of the first failure that no flush has told of
        registry.enter(self)
        self._unsaved = False
        self._origin: Any = None  # of the array that was opened, where one was
        self._forgettable = False
        self._sealed = self._is_common = False
        self._shares = None
        self._pins = {}
        self._lent_to = lambda: None
        # What ends with the process is not to be saved before that.
        self._saves = mode == "r+" and not isinstance(store, CompressedMemory)
        if self._saves:
            save_at_exit(self)
            if store.restartable:
                from pagemove.paging import sigterm  # for what outlives the process alone

                sigterm.arm()
        if order:
            super().replay(order)

    # Of regions that arrays are allocated in: what messages call it, that nothing is in the store
    # yet, and where changes go.
    _known_as = ""
    _blank = False
    # That the kernel alone serves it until there is more in it than its limit.
    _plain = False

    def _open(self, store: Store, options: Checked, *, again: bool) -> None:
        with limits.named():
            self._file_lock = file_lock(store) if options.mode == MODES["r+"] else None
        try:
            self._serve(store, options, again=again)
        except BaseException:
            # The exception may keep this object.
            if self._file_lock is not None:
                self._file_lock.close()
            raise

    def _serve(self, store: Store, options: Checked, *, again: bool) -> None:
        tracing.begin()
        lanes = 0
        try:
            writes = options.mode == MODES["r+"]
            with serving(
                store, options.block_size, options.limit, writes=writes, isolated=options.isolated
            ) as found:
                served, payload = found
                again = again and bool(payload or "path" in served or "compression" in served)
                lanes = served["helper"][3] if served["helper"] else 0
                if self._known_as:
                    served["label"] = os.fsencode(self._known_as)
                super().__init__(
                    nbytes=store.nbytes,
                    mode=options.mode,
                    block_size=options.block_size,
                    limit=options.limit,
                    budget=options.budget,
                    timeout_ns=options.timeout_ns,
                    writeback_ns=options.writeback_ns if store.restartable else 0,
                    outlives=store.restartable,
                    read_ahead=options.read_ahead,
                    spill_directory=options.spill_directory,
                    blank=self._blank,
                    plain=self._plain,
                    dumped=os.environ.get("PAGEMOVE_CORE_DUMPS", "0") not in ("", "0"),
                    name=options.name,
                    again=again,
                    **served,
                )
                if again:
                    self._payload = payload
                    forking.have_again(self)
                door = served.get("door")
                if door is not None and not door[2] and not self.shares_helper:
                    hosts.forget(door[0])
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                from pagemove.probing import features  # and all that a kernel may lack

                features(refresh=True).require("paging")
            refusals.explain(error, lanes)
            raise
        if not self.kernel_faults:
            try:
                registry.warn_of_kernel_faults()
            except Warning:
                # It is to be an error: no region then.
                Blocks.close(self)  # nothing is to be saved yet
                raise

    def _begin_again(self) -> None:
        """In a child made by fork: forget what is the parent's."""
        self._record = None  # for the parent to write down
        self._told = 0
        self._pins = {}

    def __dir__(self) -> list[str]:
        # For completion: what the pager has for this class alone is left out.
        return sorted(set(super().__dir__()) - _OF_THE_PAGER)

    @property
    def store(self) -> Store:
        """The store it was made over. It may be closed; the region does not need it."""
        return self._store

    @property
    def mode(self) -> Mode:
        """``"r"``, ``"r+"`` or ``"c"``."""
        return self._mode

    @property
    def resident_limit(self) -> int | None:
        """The most bytes in memory at any moment, also where it was not chosen; None: no limit.

        With a budget that of all its regions together.
        """
        return (self._limit or None) if self._budget is None else self._budget.limit

    @property
    def budget(self) -> Budget | None:
        """What it shares its limit with others by; None: the limit is its own."""
        return self._budget

    def __repr__(self) -> str:
        if not hasattr(self, "_label"):
            return "<PagedMemory that was never opened>"
        over = f"over {self._label}"
        if self.inherited:
            return f"<PagedMemory of the parent process {over}>"
        if self.closed:
            return f"<closed PagedMemory {over}>"
        limit = self.resident_limit
        most = f", at most {text_of(limit)} resident" if limit else ""
        if self._budget is not None:
            most += " with all others of its budget"
        if limit and not self._chosen:
            most += " (by default: half of the memory available)"
        return f"<PagedMemory of {text_of(self.nbytes)} {over}, mode {self._mode!r}{most}>"
