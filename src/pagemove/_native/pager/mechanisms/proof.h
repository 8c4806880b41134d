/* HMAC-SHA256 (RFC 2104, FIPS 180-4): how who hands an array over and who takes it prove that they
 * have the same secret, where there is no interpreter to ask. */
#ifndef PAGEMOVE_PAGER_MECHANISMS_PROOF_H
#define PAGEMOVE_PAGER_MECHANISMS_PROOF_H

#include <stddef.h>
#include <stdint.h>

enum { PG_PROOF = 32 };

/* Some bytes of a message. */
struct pg_bytes {
    const void *at;
    size_t length;
};

/* Of a message in parts that follow each other. */
void pg_hmac(struct pg_bytes secret, const struct pg_bytes *parts, size_t count,
             uint8_t proof[PG_PROOF]);

/* Whether two are the same, in a time that does not say where they differ. */
int pg_same_proof(const uint8_t one[PG_PROOF], const uint8_t other[PG_PROOF]);

#endif
