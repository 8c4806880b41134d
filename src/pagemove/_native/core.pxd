"""What the modules of the core share, beside the C code that they are linked with."""

from libc.stdint cimport uint64_t

import os


cdef extern from "start.h" nogil:
    int pm_start()

cdef extern from "pager/mechanisms/leader.h" nogil:
    int pg_leader_begin()

cdef extern from "generation.h" nogil:
    uint64_t pm_generation()
    uint64_t pm_generation_known()


cdef inline int prepare() except -1:
    """Have the core prepared: every module does this first."""
    cdef int error = pm_start()
    if error:
        raise OSError(-error, f"madvise(MADV_WIPEONFORK): {os.strerror(-error)}")
    # Without it a child may outlive its last thread, which is no reason to do without the library.
    pg_leader_begin()
    return 0
