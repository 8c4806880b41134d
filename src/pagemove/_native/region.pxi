"""A region of paged memory: how it is opened, inherited by a fork, and closed.

Part of pager.pyx, which includes it.
"""

# In a child made by fork, in the order of `pg_remedy`.
cdef tuple _REMEDIES = (
    "open the store anew in the child, or leave fork='reopen', over a store that can be opened "
    "again",
    "flush it in the parent, and open the store anew in the child",
    "its private changes are the parent's alone: open the store anew in the child, without them, "
    "or pass the child a copy of what it needs",
    "make arrays in the child, or pass it copies",
    "compressed memory is inherited if it has a resident_limit of its own, no spill, and "
    "fork='reopen'; or pass the child a copy of what it needs",
    "it ends with the parent: make one in the child, or pass it a copy of what it needs",
    "hand it over again, by pagemove.serve in the parent and open_array of the URL in the child, "
    "or pass the child a copy of what it needs",
)


cdef class Region:
    """The memory of a `Pager`: opened, there in a child made by fork or not, and closed.

    It is not inherited by a fork: in a child it refuses everything, and closing it does nothing,
    unless it was made to be there `again`.
    """

    cdef pg_region *_region
    cdef const pg_region *_origin
    cdef pg_heir *_heir
    cdef pg_stone *_grave
    cdef uint64_t _address
    cdef uint64_t _nbytes
    cdef uint64_t _block_size
    cdef uint64_t _born
    cdef int _mode
    cdef int _remedy
    cdef Py_ssize_t _exports
    cdef Py_ssize_t _calls
    cdef bint _interrupted
    # Handed over: new buffers are read-only, and so are arrays over them.
    cdef public bint _frozen
    cdef object __weakref__

    def __cinit__(self, *args, **kwargs):
        self._region = NULL
        self._heir = NULL
        self._grave = NULL
        self._born = pm_generation()

    def __init__(self, int fd, uint64_t nbytes, bytes label, *, int mode, uint64_t block_size,
                 uint64_t limit, uint64_t timeout_ns, bint read_ahead, bytes spill_directory,
                 uint64_t offset=0, object injection=(), bytes name=b"", object helper=None,
                 bint dumped=False, uint64_t writeback_ns=0, bint outlives=False,
                 object identities=(), SharedLimit budget=None, bint blank=False, bint plain=False,
                 bint again=False, bytes path=None, int64_t modified=0, object compression=None,
                 int direct=0, object door=None, object taking=None):
        cdef pg_config config
        cdef pg_injection *injections
        cdef pg_helper process
        cdef pg_compression memory
        cdef pg_taking taken
        cdef const char *arguments[128]
        cdef char text[PG_TEXT]
        cdef int status
        if self._region != NULL or self._heir != NULL:
            raise ValueError("this pager is open already")
        if nbytes == 0:
            raise ValueError("nbytes must be positive, not 0")
        rules = [tuple(rule) for rule in injection]
        injections = <pg_injection *> calloc(len(rules) + 1, sizeof(pg_injection))
        if injections == NULL:
            raise MemoryError
        try:
            for i, (operation, first, count, kind, value) in enumerate(rules):
                injections[i].operation = operation
                injections[i].first = first
                injections[i].count = count
                injections[i].kind = kind
                injections[i].value = value
            config.fd = fd
            for i in range(3):
                config.identities[i].device = config.identities[i].inode = 0
            for i, (device, inode) in enumerate(identities):
                config.identities[i].device, config.identities[i].inode = device, inode
            config.offset = offset
            config.nbytes = nbytes
            config.label = label
            config.mode = mode
            config.block_size = block_size
            config.limit = limit
            config.budget = NULL if budget is None else budget.here()
            config.timeout_ns = timeout_ns
            config.read_ahead = read_ahead
            config.dumped = dumped
            config.writeback_ns = writeback_ns
            config.outlives = outlives
            config.blank = blank
            config.plain = plain
            config.moves = _may_move
            config.direct = direct
            config.rings = _rings
            config.kernel_faults = _kernel_faults
            config.spill_directory = spill_directory
            config.name = name
            config.injections = injections
            config.injection_count = len(rules)
            config.again = again
            config.path = NULL if path is None else <const char *> path
            config.modified = modified
            config.helper = NULL
            config.compression, config.kept, config.taking = NULL, NULL, NULL
            if compression is not None:
                memory.limit, spill = compression
                memory.spill = NULL if spill is None else <const char *> spill
                config.compression = &memory
            if taking is not None:
                _fill_taking(&taken, taking)
                config.taking = &taken
            if helper is not None:
                (argv, process.config_fd, process.log_fd, process.lanes, process.buffer_size,
                 process.restarts, process.flush_retryable) = helper
                if len(argv) > 127:
                    raise ValueError(f"at most 127 arguments for the helper, not {len(argv)}")
                for i, argument in enumerate(argv):
                    arguments[i] = argument
                arguments[len(argv)] = NULL
                process.argv = arguments
                process.host, process.door_fd, process.door_is_new = NULL, -1, 0
                if door is not None:
                    host, process.door_fd, process.door_is_new = door
                    process.host = (<Host?> host)._host
                config.helper = &process
            with nogil:
                status = pg_open(&config, &self._region, text)
            self._raise_if_interrupted(status)
        finally:
            free(injections)
        if status == -EFBIG and not text[0]:
            raise OSError(EFBIG, "more blocks than can be numbered: choose a larger block size")
        if status:
            reason = text.decode(errors="replace") or os.strerror(-status)
            # Of arrays that are allocated there are as many addresses as can be had.
            what = "memory for arrays" if blank and text[0] else f"paged memory of {nbytes} bytes"
            error = OSError(-status, f"cannot set up {what}: {reason}")
            error.explained = bool(text[0])
            raise error
        status = pm_paged_enter(
            pg_address(self._region),
            pg_address(self._region) + (nbytes + block_size - 1) // block_size * block_size,
        )
        if status:
            pg_drop(self._region, True)
            self._region = NULL
            raise OSError(-status, "more regions of paged memory than one process can have")
        self._origin = self._region
        self._address = pg_address(self._region)
        self._nbytes = nbytes
        self._block_size = block_size
        self._mode = mode
        self._remedy = pg_remedy_of(&config)

    def __dealloc__(self):
        # In a forked child there is nothing to close, and there are no threads to wait for.
        # Whoever did not wait for the store before does not here, where nothing can be raised.
        if pm_generation_known() and self._is_here():
            if self._region != NULL:
                self._grave = pg_grave(self._region)
            if self._heir != NULL:
                pm_paged_leave(self._address)
                pg_heir_drop(self._heir, not self._interrupted)
            elif self._region != NULL:
                pm_paged_leave(self._address)
                pg_drop(self._region, not self._interrupted)
            self._leave_grave()
        self._heir = NULL
        self._region = NULL

    cdef void _leave_grave(self):
        """Give the addresses of what was closed back: nobody leads there any more."""
        cdef pg_stone *grave = self._grave
        self._grave = NULL
        if grave != NULL:
            pg_leave_closed(grave)

    cdef bint _is_here(self):
        """Whether it is of this process; in a child made by fork it may have become so."""
        cdef pg_heir *heir
        if self._born == pm_generation():
            return True
        if self._region == NULL and self._heir == NULL:
            return False
        if self._region != NULL and self._heir == NULL:
            if pg_carried_in(self._region)[0] == pm_generation():
                self._born = pm_generation()
                self._calls = 0
                return True
        heir = pg_heir_of(self._origin, False)
        if heir == NULL:
            return False
        # What the parent had is not freed: its locks may be held by threads that are not here.
        self._heir = heir
        self._grave = NULL
        self._region = NULL
        self._born = pm_generation()
        self._calls = 0
        return True

    def inherit(self, SharedLimit budget=None, object helper=None):
        """In a child made by fork, before `serve_inherited`: pass on what is of this process.

        Of a helper the descriptors of what it gets and of its log, and what they are.
        """
        cdef pm_identity identities[2]
        cdef pg_heir *heir = pg_heir_of(self._origin, True)
        if heir == NULL:
            return
        if budget is not None:
            pg_heir_share(heir, budget.here())
        if helper is not None:
            config, log, known = helper
            for i, (device, inode) in enumerate(known):
                identities[i].device, identities[i].inode = device, inode
            number = b"%d" % os.getpid()
            if pg_heir_equip(heir, config, log, identities, number):
                raise MemoryError

    cdef int _raise_if_interrupted(self, int status) except -1:
        """Raise what the signal handler has raised that ended a call."""
        if status != -PG_INTERRUPTED:
            return 0
        self._interrupted = True
        if PyErr_Occurred() != NULL:
            return -1
        raise ValueError(
            "this is a child of the process that waited for paged memory; it is not there"
        )

    cdef pg_region *_open(self) except NULL:
        cdef pg_region *region = NULL
        cdef char text[PG_TEXT]
        cdef int status
        self._check_open()
        if self._heir == NULL or self._region != NULL:
            return self._region
        self._calls += 1
        with nogil:
            status = pg_heir_region(self._heir, &region, text)
        self._calls -= 1
        if status:
            reason = text.decode(errors="replace") or os.strerror(pg_errno_of(-status))
            raise OSError(pg_errno_of(-status), f"cannot open inherited paged memory: {reason}")
        self._region = region
        return region

    cdef int _check_open(self) except -1:
        if self._region == NULL and self._heir == NULL:
            raise ValueError(f"{type(self).__name__} is closed")
        if not self._is_here():
            raise ValueError(
                f"{type(self).__name__} belongs to the parent process: it is not inherited by a "
                f"fork; {_REMEDIES[self._remedy]}"
            )
        return 0

    @property
    def address(self):
        """Address of the first byte. ValueError once closed."""
        self._check_open()
        return self._address

    @property
    def nbytes(self):
        """Length in bytes, that of the store."""
        return self._nbytes

    @property
    def block_size(self):
        """Bytes that arrive and leave together."""
        return self._block_size

    @property
    def closed(self):
        """Whether the region is gone, or belongs to the process this one was forked from."""
        return not self._is_here() or (self._region == NULL and self._heir == NULL)

    @property
    def inherited(self):
        """Whether it belongs to the process this one was forked from."""
        return (self._region != NULL or self._heir != NULL) and not self._is_here()

    @property
    def untouched(self):
        """Whether this process has inherited it, and not opened it yet."""
        self._check_open()
        return self._heir != NULL and pg_heir_waits(self._heir) != 0

    @property
    def _is_called(self):
        """Whether a thread is in a call of it."""
        return self._calls > 0

    def close(self):
        """End the threads and unmap; does not flush. Twice is fine; BufferError while in use.

        If a signal handler raises meanwhile it is closed all the same, by its own threads.
        """
        if self.closed:
            return
        if self._exports:
            raise BufferError(
                f"cannot close {type(self).__name__}: {self._exports} buffers of it (arrays, "
                "memoryviews) are still in use; delete them first"
            )
        self._end()

    def _seal(self, bint saves):
        """Have a touch be SIGSEGV from now on, with a message, and save what is changed.

        0; or -errno: nothing has happened; or an errno: saving failed, and may be tried again.
        """
        cdef pg_region *region = self._open()
        cdef int status
        self._calls += 1
        try:
            with nogil:
                status = pg_seal(region, saves)
            self._raise_if_interrupted(status)
        finally:
            self._calls -= 1
        return status if status and not pg_lost(region) else _errno_of(status)

    def _close_sealed(self):
        """As `close`, also with buffers in use: the addresses stay reserved until they are not."""
        if not self.closed:
            self._open()
            self._end()

    cdef int _end(self) except -1:
        cdef pg_region *region = self._region
        cdef pg_heir *heir = self._heir
        cdef int status
        if self._calls > 0:
            raise BufferError(
                f"cannot close {type(self).__name__}: another thread is in a call of it; wait for "
                "that first"
            )
        if region != NULL:
            self._grave = pg_grave(region)
        self._region = NULL
        self._heir = NULL
        pm_paged_leave(self._address)
        with nogil:
            status = pg_close(region) if heir == NULL else pg_heir_close(heir)
        if not self._exports:
            self._leave_grave()
        self._raise_if_interrupted(status)
        return 0

    def __getbuffer__(self, Py_buffer *view, int flags):
        self._check_open()
        PyBuffer_FillInfo(
            view, self, <void *> <uintptr_t> self._address, self._nbytes,
            self._mode == PG_READ or self._frozen, flags,
        )
        self._exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self._exports -= 1
        if not self._exports and self._grave != NULL and self._born == pm_generation_known():
            self._leave_grave()
