#include "pager/mechanisms/proof.h"

#include <string.h>

enum { CHUNK = 64, ROUNDS = 64 };

struct hash {
    uint32_t state[8];
    uint64_t length;
    uint8_t rest[CHUNK];
};

/* The first 32 bits of the fractions of the cube roots of the first 64 primes. */
static const uint32_t constants[ROUNDS] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t turned(uint32_t word, int by)
{
    return word >> by | word << (32 - by);
}

static void take_chunk(struct hash *hash, const uint8_t chunk[CHUNK])
{
    uint32_t w[ROUNDS], s[8];

    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)chunk[4 * i] << 24 | (uint32_t)chunk[4 * i + 1] << 16 |
               (uint32_t)chunk[4 * i + 2] << 8 | chunk[4 * i + 3];
    for (int i = 16; i < ROUNDS; i++)
        w[i] = w[i - 16] + w[i - 7] +
               (turned(w[i - 15], 7) ^ turned(w[i - 15], 18) ^ w[i - 15] >> 3) +
               (turned(w[i - 2], 17) ^ turned(w[i - 2], 19) ^ w[i - 2] >> 10);
    memcpy(s, hash->state, sizeof s);
    for (int i = 0; i < ROUNDS; i++) {
        uint32_t one = s[7] + (turned(s[4], 6) ^ turned(s[4], 11) ^ turned(s[4], 25)) +
                       ((s[4] & s[5]) ^ (~s[4] & s[6])) + constants[i] + w[i];
        uint32_t two = (turned(s[0], 2) ^ turned(s[0], 13) ^ turned(s[0], 22)) +
                       ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        memmove(s + 1, s, 7 * sizeof *s);
        s[4] += one;
        s[0] = one + two;
    }
    for (int i = 0; i < 8; i++)
        hash->state[i] += s[i];
}

static void begin(struct hash *hash)
{
    *hash = (struct hash){.state = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f,
                                    0x9b05688c, 0x1f83d9ab, 0x5be0cd19}};
}

static void take(struct hash *hash, struct pg_bytes bytes)
{
    const uint8_t *at = bytes.at;

    for (size_t left = bytes.length; left;) {
        size_t filled = hash->length % CHUNK, some = CHUNK - filled < left ? CHUNK - filled : left;
        memcpy(hash->rest + filled, at, some);
        hash->length += some;
        at += some;
        left -= some;
        if (filled + some == CHUNK)
            take_chunk(hash, hash->rest);
    }
}

static void finish(struct hash *hash, uint8_t digest[PG_PROOF])
{
    uint64_t bits = 8 * hash->length;
    uint8_t end[CHUNK + 8] = {0x80};
    /* Up to 8 bytes before the end of a chunk. */
    size_t length = 1 + (2 * CHUNK - 9 - hash->length % CHUNK) % CHUNK;

    for (int i = 0; i < 8; i++)
        end[length + (size_t)i] = (uint8_t)(bits >> (56 - 8 * i));
    take(hash, (struct pg_bytes){end, length + 8});
    for (int i = 0; i < PG_PROOF; i++)
        digest[i] = (uint8_t)(hash->state[i / 4] >> (24 - 8 * (i % 4)));
}

static void start_with(struct hash *hash, const uint8_t key[CHUNK], uint8_t pad)
{
    uint8_t padded[CHUNK];

    for (int i = 0; i < CHUNK; i++)
        padded[i] = key[i] ^ pad;
    begin(hash);
    take(hash, (struct pg_bytes){padded, CHUNK});
}

void pg_hmac(struct pg_bytes secret, const struct pg_bytes *parts, size_t count,
             uint8_t proof[PG_PROOF])
{
    uint8_t key[CHUNK] = {0};
    struct hash hash;

    if (secret.length > CHUNK) {
        begin(&hash);
        take(&hash, secret);
        finish(&hash, key);
    } else if (secret.length) {
        memcpy(key, secret.at, secret.length);
    }
    start_with(&hash, key, 0x36);
    for (size_t i = 0; i < count; i++)
        take(&hash, parts[i]);
    finish(&hash, proof);
    start_with(&hash, key, 0x5c);
    take(&hash, (struct pg_bytes){proof, PG_PROOF});
    finish(&hash, proof);
}

int pg_same_proof(const uint8_t one[PG_PROOF], const uint8_t other[PG_PROOF])
{
    unsigned different = 0;

    for (int i = 0; i < PG_PROOF; i++)
        different |= one[i] ^ other[i];
    return !different;
}
