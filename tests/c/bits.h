/* bits.h: what the programs of this folder share. */
#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static inline void fail(const char *message, const char *what)
{
    fprintf(stderr, "%s %s\n", message, what);
    exit(2);
}

/* All NaN alike, and magnitudes up to FLT_MIN as 0: ARM flushes before it rounds, x86 after. */
static inline uint32_t canonical_bits(float x)
{
    uint32_t bits;
    if (isnan(x)) return 0x7fc00000;
    memcpy(&bits, &x, sizeof bits);
    return fabsf(x) <= FLT_MIN ? bits & 0x80000000 : bits;
}

/* ---- Numbers, by a linear congruence ---- */

static uint32_t seed;

static inline uint32_t next_bits(void)
{
    seed = seed * 1664525u + 1013904223u;
    return seed >> 8;
}

static inline size_t next_below(size_t limit) { return next_bits() % limit; }

/* In [-1, 1). */
static inline float next_float(void) { return (float)next_bits() * 0x1p-23f - 1.0f; }

static inline float *new_floats(size_t n)
{
    float *floats = calloc(n ? n : 1, sizeof *floats);
    if (!floats) fail("out of", "memory");
    return floats;
}

static inline float *random_floats(size_t n, float scale)
{
    float *floats = new_floats(n);
    for (size_t k = 0; k < n; k++) floats[k] = scale * next_float();
    return floats;
}

static inline void print_hash(const float *x, size_t n)
{
    uint64_t hash = 14695981039346656037u; /* FNV-1a */
    for (size_t k = 0; k < n; k++) hash = (hash ^ canonical_bits(x[k])) * 1099511628211u;
    printf(" %" PRIx64, hash);
}

/* ---- Scratch of exactly the size that was asked for, and a fence behind it ---- */

enum { FENCE = 1 << 16, MARK = 0x5a };

static inline void *new_scratch(size_t bytes)
{
    unsigned char *scratch = aligned_alloc(64, (bytes + 63) / 64 * 64 + FENCE);
    if (!scratch) fail("out of", "memory");
    memset(scratch + bytes, MARK, FENCE);
    return scratch;
}

static inline void free_scratch(void *scratch, size_t bytes)
{
    const unsigned char *fence = (const unsigned char *)scratch + bytes;
    for (size_t k = 0; k < FENCE; k++)
        if (fence[k] != MARK) fail("wrote beyond its", "scratch");
    free(scratch);
}
