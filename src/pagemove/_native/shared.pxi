"""What any number of regions share: a limit, a helper process.

Part of pager.pyx, which includes it.
"""


cdef int _raise_if_signalled(int status) except -1:
    return -1 if status == -PG_INTERRUPTED and PyErr_Occurred() != NULL else 0


cdef dict _named(const pg_budget_counters *counters):
    return {
        "total": counters.total,
        "leased": counters.leased,
        "floors": counters.floors,
        "grown": counters.grown,
        "returned": counters.returned,
        "moved": counters.moved,
        "refused": counters.refused,
        "members": counters.members,
    }


cdef class SharedLimit:
    """A limit for any number of regions. Integers in, integers out: `pagemove.Budget`.

    In a child made by fork it is one that no region shares yet.
    """

    cdef pg_budget *_budget
    cdef uint64_t _born
    cdef uint64_t _total
    cdef object __weakref__

    def __cinit__(self, *args, **kwargs):
        self._budget = NULL

    def __init__(self, uint64_t total):
        if self._budget != NULL:
            raise ValueError("this limit is set already")
        self._total = total
        self.here()

    def __dealloc__(self):
        if self._budget != NULL and self._born == pm_generation_known():
            pg_budget_release(self._budget)

    cdef pg_budget *here(self) except NULL:
        if self._budget != NULL and self._born == pm_generation():
            return self._budget
        # Not freed: a thread of the parent may have been about to change it.
        self._budget = pg_budget_new(self._total)
        self._born = pm_generation()
        if self._budget == NULL:
            raise MemoryError
        return self._budget

    def change_total(self, uint64_t total, uint64_t patience_ns):
        """Change the limit, and wait for regions to return memory, so many nanoseconds at most.

        0; -1: the regions need more, and nothing has changed; or ETIMEDOUT.
        """
        cdef pg_budget *budget = self.here()
        cdef int status
        with nogil:
            status = pg_budget_resize(budget, total, patience_ns, pg_may_wait_no_longer)
        if status == -PG_NO_ROOM:
            return -1
        self._total = total
        _raise_if_signalled(status)
        return 0 if status == -PG_INTERRUPTED else -status

    def counters(self):
        """Return all counters by name."""
        cdef pg_budget_counters counters
        cdef pg_budget *budget = self.here()
        with nogil:
            pg_budget_counters_of(budget, &counters)
        return _named(&counters)

    def shares(self):
        """Return all counters by name, and (leased, resident) of each region by its `share_id`.

        All are of one moment.
        """
        cdef pg_budget_counters counters
        cdef pg_budget *budget = self.here()
        cdef pg_holding *shares = NULL
        cdef size_t room = 0
        try:
            with nogil:
                pg_budget_counters_of(budget, &counters)
            while counters.members > room:
                free(shares)
                room = counters.members + 8
                shares = <pg_holding *> malloc(room * sizeof(pg_holding))
                if shares == NULL:
                    raise MemoryError
                with nogil:
                    pg_budget_shares(budget, &counters, shares, room)
            return _named(&counters), {
                shares[i].id: (shares[i].leased, shares[i].resident)
                for i in range(counters.members)
            }
        finally:
            free(shares)


cdef class Host:
    """What is known of a helper process that any number of regions share."""

    cdef pg_host *_host
    cdef object __weakref__

    def __cinit__(self):
        self._host = pg_host_new()
        if self._host == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self._host != NULL:
            pg_host_release(self._host)

    @property
    def members(self):
        """How many regions share it now."""
        return pg_host_members(self._host)


def mail_bytes():
    """Bytes that the requests to a helper take behind the buffers of its lanes."""
    return pg_mail_bytes()


cdef class Desk:
    """Where the threads of a helper that serve one region get their requests.

    `letters` is the address of what `mail_bytes` counts, in memory that `owner` keeps; `region` the
    descriptor by which blocks are put into the region.
    """

    cdef pg_desk _desk
    cdef object _owner

    def __cinit__(self, uint64_t letters, unsigned int generation, int region, object owner):
        self._owner = owner
        pg_desk_open(&self._desk, <void *> <uintptr_t> letters, generation, region)

    def serve(self, uint32_t lane, uint64_t source, object view, object store, object check):
        """Read what is to be put into the region, until there is something else to do.

        That is: 0, the region has ended; 1, to answer another request; 2, to send that all is well.
        What the store raises, or `check` of what it has returned, is raised.
        """
        cdef pg_errand *request = &self._desk.letters[lane].request
        cdef int status = 0
        cdef bint ended
        with nogil:
            ended = pg_desk_wait(&self._desk, lane) != 0
        while not ended and request.address:
            result = store.read_into(request.offset, view[:request.length])
            if result is not None:
                check(store, "read", request.offset, request.length, result)
            with nogil:
                status = pg_desk_place(&self._desk, lane, source)
                if not status:
                    ended = pg_desk_wait(&self._desk, lane) != 0
            if status < 0:
                raise OSError(-status, f"UFFDIO_COPY: {os.strerror(-status)}")
            if status:
                return 2
        return not ended

    def request(self, uint32_t lane):
        """Return the other request: operation, offset, length."""
        cdef pg_errand *request = &self._desk.letters[lane].request
        return request.operation, request.offset, request.length

    def end(self):
        """Have all waits return, now and in future."""
        with nogil:
            pg_desk_end(&self._desk)

    def note_cut_off(self):
        """Have the region say why this process ends: its descriptors were closed."""
        pg_desk_note_cut_off(&self._desk)

    def leave(self):
        """Put nothing into the region any more: then its descriptor can be closed."""
        with nogil:
            pg_desk_leave(&self._desk)
