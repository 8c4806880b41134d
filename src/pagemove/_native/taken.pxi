"""An array that another process hands over, taken without the interpreter.

Part of pager.pyx, which includes it.
"""


cdef int _fill_taking(pg_taking *taken, object taking) except -1:
    """Read what is said of it: all of it stays with the caller."""
    (address, want, secret, url, backing, taken.unit, taken.patience_ns, taken.late_ns,
     taken.eager, taken.quiet) = taking
    taken.address = <const char *> address
    taken.address_length = <uint32_t> len(address)
    taken.want.at, taken.want.length = <const char *> want, len(want)
    taken.secret.at, taken.secret.length = NULL, 0
    if secret is not None:
        taken.secret.at, taken.secret.length = <const char *> secret, len(secret)
    taken.url = url
    taken.backing = NULL if backing is None else <const char *> backing
    return 0


cdef class Taken:
    """The bytes of such an array, for who has no region: `pagemove.stores.handed`.

    `taking` is as `pagemove.stores.handed.HandedStore.taking` makes it. What fails is an OSError
    with the whole message.
    """

    cdef pg_taken *_taken
    cdef uint64_t _born
    cdef object __weakref__

    def __cinit__(self, *args, **kwargs):
        self._taken = NULL
        self._born = pm_generation()

    def __init__(self, object taking, uint64_t nbytes):
        cdef pg_taking found
        cdef char text[PG_TEXT]
        cdef int status
        if self._taken != NULL:
            raise ValueError("it is open already")
        _fill_taking(&found, taking)
        with nogil:
            status = pg_taken_open(&found, nbytes, &self._taken, text)
        _raise_said(status, text)

    def __dealloc__(self):
        if self._taken != NULL and self._born == pm_generation_known():
            with nogil:
                pg_taken_close(self._taken)
            self._taken = NULL

    cdef pg_taken *_open(self) except NULL:
        if self._taken == NULL:
            raise ValueError("it is not open")
        return self._taken

    def read_into(self, uint64_t offset, object buffer):
        """Fill a buffer, which lies within the array."""
        self._transfer(offset, buffer, True)

    def write(self, uint64_t offset, object data):
        """Write bytes, which lie within the array."""
        self._transfer(offset, data, False)

    cdef int _transfer(self, uint64_t offset, object buffer, bint reads) except -1:
        cdef Py_buffer view
        cdef iovec vector
        cdef char text[PG_TEXT]
        cdef int status = 0
        cdef pg_taken *taken = self._open()
        PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE if reads else PyBUF_SIMPLE)
        vector.iov_base, vector.iov_len = view.buf, view.len
        with nogil:
            if not vector.iov_len:
                pass
            elif reads:
                status = pg_taken_read(taken, offset, &vector, 1, vector.iov_len, 0, text)
            else:
                status = pg_taken_write(taken, offset, &vector, 1, vector.iov_len, text)
        PyBuffer_Release(&view)
        return _raise_said(status, text)

    def flush(self):
        """See that no write to the files has failed."""
        cdef char text[PG_TEXT]
        cdef int status
        cdef pg_taken *taken = self._open()
        with nogil:
            status = pg_taken_sync(taken, text)
        _raise_said(status, text)

    def stats(self):
        """Return how much is here, as JSON."""
        cdef char text[PG_TEXT]
        pg_taken_stats(self._open(), text)
        return text.decode()

    def bits(self):
        """Return which units are here, a bit each."""
        cdef pg_taken *taken = self._open()
        cdef bytearray bits = bytearray(pg_taken_bits(taken, NULL))
        pg_taken_bits(taken, <uint8_t *> <char *> bits)
        return bytes(bits)

    def go_on(self):
        """Have all else come after all. For tests."""
        cdef int status
        cdef pg_taken *taken = self._open()
        with nogil:
            status = pg_taken_go_on(taken)
        if status:
            raise OSError(-status, os.strerror(-status))

    def stop(self):
        """Wake who waits: no more comes."""
        cdef pg_taken *taken = self._open()
        with nogil:
            pg_taken_stop(taken)

    def forget(self):
        """In a child made by fork: close what is the parent's."""
        pg_taken_forget(self._open())
        self._taken = NULL


cdef int _raise_said(int status, const char *text) except -1:
    if status:
        code = pg_errno_of(-status) or _errno.EIO
        raise OSError(code, text.decode(errors="replace") or os.strerror(code))
    return 0
