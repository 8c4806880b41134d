"""What pager/pager.h declares, for pager.pyx, which Cython includes this in."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "descriptors.h" nogil:
    struct pm_identity:
        uint64_t device, inode

cdef extern from "pager/mechanisms/budget.h" nogil:
    struct pg_budget:
        pass
    struct pg_budget_counters:
        uint64_t total, leased, floors, grown, returned, moved, refused
        uint32_t members
    struct pg_holding:
        uint64_t id, leased, resident
    pg_budget *pg_budget_new(uint64_t total)
    void pg_budget_release(pg_budget *budget)
    int pg_budget_resize(pg_budget *budget, uint64_t total, uint64_t patience,
                         int (*ask)() noexcept)
    void pg_budget_counters_of "pg_budget_counters"(
        pg_budget *budget, pg_budget_counters *counters
    )
    void pg_budget_shares(pg_budget *budget, pg_budget_counters *counters, pg_holding *shares,
                          size_t room)

cdef extern from "pager/mechanisms/taking.h" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    struct pg_taken:
        pass
    int pg_taken_open(const pg_taking *taking, uint64_t nbytes, pg_taken **opened, char *text)
    void pg_taken_stop(pg_taken *taken)
    void pg_taken_close(pg_taken *taken)
    void pg_taken_forget(pg_taken *taken)
    int pg_taken_read(pg_taken *taken, uint64_t offset, const iovec *vector, size_t count,
                      uint64_t total, int nowait, char *text)
    int pg_taken_write(pg_taken *taken, uint64_t offset, const iovec *vector, size_t count,
                       uint64_t total, char *text)
    int pg_taken_sync(pg_taken *taken, char *text)
    void pg_taken_stats(pg_taken *taken, char *text)
    int pg_taken_go_on(pg_taken *taken)
    uint64_t pg_taken_bits(pg_taken *taken, uint8_t *bits)

cdef extern from "pager/mechanisms/trace.h" nogil:
    uint64_t pg_trace_bytes()
    int pg_trace_start(int fd)

cdef extern from "pager/mechanisms/host.h" nogil:
    struct pg_host:
        pass
    pg_host *pg_host_new()
    void pg_host_release(pg_host *host)
    unsigned pg_host_members(const pg_host *host)

cdef extern from "pager/mechanisms/mail.h" nogil:
    struct pg_errand:
        uint32_t operation, protect
        uint64_t offset, length, address
    struct pg_letter:
        pg_errand request
    struct pg_desk:
        pg_letter *letters
    uint64_t pg_mail_bytes()
    void pg_desk_open(pg_desk *desk, void *letters, unsigned generation, int region)
    int pg_desk_wait(pg_desk *desk, uint32_t lane)
    int pg_desk_place(pg_desk *desk, uint32_t lane, uint64_t source)
    void pg_desk_end(pg_desk *desk)
    void pg_desk_note_cut_off(pg_desk *desk)
    void pg_desk_leave(pg_desk *desk)

cdef extern from "pager/mechanisms/threads.h" nogil:
    void pg_enter_own()
    void pg_leave_own()

cdef extern from "pager/mechanisms/watch.h" nogil:
    int pg_watch_beats(uint64_t patience_ns)
    void pg_beat(int watched)

cdef extern from "pager/pager.h" nogil:
    enum:
        PG_READ, PG_FAILURES, PG_BUCKETS, PG_TEXT, PG_NO_ROOM, PG_INTERRUPTED, PG_LOST
        PG_SHORT, PG_NOT_NOW, PG_NO_ANSWER, PG_GONE, PG_NOT_ASKED, PG_NO_MEMORY, PG_NOT_DURABLE
        PG_UNALIGNED
    int pg_errno_of(int code)
    void pg_set_trouble(int call, uint64_t first, uint64_t count, uint64_t period, int error)
    struct pg_helper:
        const char *const *argv
        int config_fd, log_fd
        uint32_t lanes
        uint64_t buffer_size
        int restarts, flush_retryable
        pg_host *host
        int door_fd, door_is_new
    struct pg_compression:
        uint64_t limit
        const char *spill
    struct pg_bytes:
        const void *at
        size_t length
    struct pg_taking:
        const void *address
        uint32_t address_length
        pg_bytes want, secret
        const char *url
        const char *backing
        uint64_t unit, patience_ns, late_ns
        int eager, quiet
    const char *pg_codec_name()
    struct pg_injection:
        int operation, kind
        uint64_t first, count
        int64_t value
    struct pg_compressed:
        pass
    struct pg_heir:
        pass
    struct pg_config:
        const pg_helper *helper
        const pg_compression *compression
        pg_compressed *kept
        const pg_taking *taking
        int fd
        pm_identity[3] identities
        uint64_t offset, nbytes
        const char *label
        int mode
        pg_budget *budget
        uint64_t block_size, limit, timeout_ns, writeback_ns
        int direct, rings, read_ahead, moves, kernel_faults, dumped, outlives, blank
        int plain
        const char *spill_directory
        const char *name
        const pg_injection *injections
        size_t injection_count
        int again
        const char *path
        int64_t modified
    struct pg_counters:
        uint64_t faults, write_faults, rescued, prefetched, evicted, remapped, written_back
        uint64_t resident, dirty, pinned, leased
        uint64_t bytes_read, bytes_written, retries, errors, restarts
        uint64_t background_written, background_failures
    struct pg_failure:
        uint64_t sequence
        int operation, error
        uint64_t offset, tries
    struct pg_region:
        pass
    struct pg_stone:
        pass
    struct pg_run:
        uint32_t first, count
    void pg_ask_while_waiting(int (*may_wait_no_longer)() noexcept)
    int pg_may_wait_no_longer() noexcept
    int pg_open(const pg_config *config, pg_region **region, char *text)
    int pg_close(pg_region *region)
    int pg_seal(pg_region *region, int saves)
    pg_stone *pg_grave(const pg_region *region)
    void pg_leave_closed(pg_stone *stone)
    void pg_drop(pg_region *region, int waiting)
    uint64_t pg_address(const pg_region *region)
    int pg_kernel_faults(const pg_region *region)
    int pg_compresses(const pg_region *region)
    int pg_shares_helper(const pg_region *region)
    int pg_moves(const pg_region *region)
    int pg_lost(const pg_region *region)
    int pg_prefetch(pg_region *region, uint64_t offset, uint64_t length, int wait)
    int pg_gather(pg_region *region, const pg_run *runs, size_t count, int wait)
    uint64_t pg_gatherable(pg_region *region)
    int pg_evict(pg_region *region, uint64_t offset, uint64_t length)
    int pg_engage(pg_region *region)
    int pg_is_full(pg_region *region, uint64_t more, int zeros)
    void pg_set_stores_only(pg_region *region, int only) nogil
    int pg_shift(pg_region *region, uint64_t to, uint64_t start, uint64_t length)
    const int *pg_plain_flag(const pg_region *region)
    const uint64_t *pg_carried_in(const pg_region *region)
    const int *pg_lost_flag(const pg_region *region)
    uint64_t *pg_own_blocks(pg_region *region)
    int pg_discard_blocks(pg_region *region, uint64_t offset, uint64_t length)
    int pg_pin(pg_region *region, const pg_run *runs, size_t count, int write)
    void pg_unpin(pg_region *region, const pg_run *runs, size_t count)
    uint64_t pg_pinnable(pg_region *region)
    int pg_flush(pg_region *region)
    unsigned pg_save_all(uint64_t nanoseconds)
    int pg_save_on_sigterm(uint64_t nanoseconds, int replace)
    void pg_leave_sigterm()
    uint64_t pg_share_id(const pg_region *region)
    void pg_counters_of "pg_counters"(pg_region *region, pg_counters *counters)
    void pg_failure_text(pg_region *region, uint64_t sequence, char *text)
    struct pg_reading:
        int queue, direct
        uint32_t alignment
    void pg_reading_of(const pg_region *region, pg_reading *reading)
    int pg_try_ring()
    int pg_store_stats(pg_region *region, char *text)
    int pg_replay(pg_region *region, const uint32_t *numbers, uint32_t count)
    int pg_record(pg_region *region)
    uint32_t pg_recorded(pg_region *region, uint32_t *numbers, uint32_t most)
    size_t pg_failures(pg_region *region, pg_failure *failures)
    void pg_histogram(pg_region *region, uint64_t *counts)
    uint64_t pg_bucket_limit(size_t bucket)
    uint64_t pg_state_bytes(pg_region *region)

cdef extern from "pager/giving.h" nogil:
    struct pg_giver:
        pass
    pg_giver *pg_giver_new(pg_region *region, uint64_t address, uint64_t nbytes, uint64_t unit)
    void pg_giver_free(pg_giver *giver)
    void pg_giver_switched(pg_giver *giver, uint64_t dirty, uint64_t bytes_written)
    int pg_giver_serve(pg_giver *giver, int fd, int *file, uint64_t patience)
    uint32_t pg_giver_missing(const pg_giver *giver)
    uint64_t pg_giver_sent(const pg_giver *giver)
    int pg_giver_was_asked(const pg_giver *giver)
    int pg_giver_is_broken(const pg_giver *giver)
    void pg_giver_acknowledged(pg_giver *giver, uint8_t *units)

cdef extern from "pager/inherited.h" nogil:
    int pg_remedy_of(const pg_config *config)

cdef extern from "pager/heirs.h" nogil:
    pg_heir *pg_heir_of(const pg_region *origin, int early)
    int pg_heir_equip(pg_heir *heir, int config_fd, int log_fd, const pm_identity *identities,
                      const char *number)
    void pg_heir_share(pg_heir *heir, pg_budget *budget)
    int pg_heirs_start(void (*there)(uint64_t start, uint64_t end) noexcept)
    int pg_heir_waits(const pg_heir *heir)
    int pg_heir_region(pg_heir *heir, pg_region **region, char *text)
    int pg_heir_close(pg_heir *heir)
    void pg_heir_drop(pg_heir *heir, int waiting)
