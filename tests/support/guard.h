/* What the C parts of the tests of paged memory share. */
#ifndef PAGEMOVE_TESTS_GUARD_H
#define PAGEMOVE_TESTS_GUARD_H

#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>

/* Where a thread that touches poisoned memory goes on. */
struct guard {
    sigjmp_buf jump;
    uintptr_t address;
    int code;
};

extern __thread struct guard *guard_armed;

#endif
