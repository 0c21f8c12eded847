/* bits.h: what the programs of this folder share. */
#include <float.h>
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
