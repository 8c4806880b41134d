"""An array that is handed over to another process: what is asked for it, without the interpreter.

Part of pager.pyx, which includes it.
"""


cdef class Giver:
    """The units of an array of a region, and which of them the other process has.

    Parameters
    ----------
    region : Region
        Kept, but not kept open: who makes this has an array of it.
    address, nbytes, unit : int
    """

    cdef pg_giver *_giver
    cdef Region _region
    cdef Py_ssize_t _units

    def __cinit__(self, Region region, uint64_t address, uint64_t nbytes, uint64_t unit):
        self._region = region
        self._units = (nbytes + unit - 1) // unit
        self._giver = pg_giver_new(region._open(), address, nbytes, unit)
        if self._giver == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self._giver != NULL:
            pg_giver_free(self._giver)

    def count_stores_only(self, bint only):
        """Have the counters of what is dirty differ after stores only, or after guesses too."""
        cdef pg_region *region = self._region._open()
        with nogil:
            pg_set_stores_only(region, only)

    def switched(self, uint64_t dirty, uint64_t bytes_written):
        """From now on nothing may change; these are the counters that say so."""
        pg_giver_switched(self._giver, dirty, bytes_written)

    def serve(self, int fd, int file, uint64_t patience_ns):
        """Answer what comes on a connection, without the GIL, until it ends.

        Returns
        -------
        tuple
            1: the order of units is asked for; 2: who waits wants to know that all is there, or
            that nothing more comes; or a negative errno. And the descriptor of the file that the
            other side has passed for the bytes, or -1, which is the caller's.
        """
        cdef int need
        with nogil:
            need = pg_giver_serve(self._giver, fd, &file, patience_ns)
        return need, file

    @property
    def missing(self):
        """Units that are not acknowledged."""
        return pg_giver_missing(self._giver)

    @property
    def sent(self):
        """Bytes that were sent, or put into a file of the other side."""
        return pg_giver_sent(self._giver)

    @property
    def broken(self):
        """Whether the array was changed after the switch."""
        return bool(pg_giver_is_broken(self._giver))

    @property
    def asked(self):
        """Whether the owner has asked for anything since the switch."""
        return bool(pg_giver_was_asked(self._giver))

    def acknowledged(self):
        """Return a byte for each unit: whether it is with the other process."""
        cdef bytearray units = bytearray(self._units)
        pg_giver_acknowledged(self._giver, <uint8_t *> <char *> units)
        return bytes(units)
