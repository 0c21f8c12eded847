/* pack.h: weights re-laid once, when a layer is created. */
#ifndef FRNN_PACK_H
#define FRNN_PACK_H

#include "kernels/kernels.h"

/* A matrix to pack: gate g of the result is rows[g] (units, k), contiguous; bias_a[g] + bias_b[g] start its totals.
 * Any bias may be NULL.  `flat` lays all panels side by side, (k, padded columns), as BLAS wants it. */
typedef struct frnn_matrix {
    size_t gates, units, k;
    const float *rows[FRNN_MAX_WIDTH];
    const float *bias_a[FRNN_MAX_WIDTH], *bias_b[FRNN_MAX_WIDTH];
} frnn_matrix;

frnn_status frnn_panels_pack(frnn_panels *panels, const frnn_matrix *matrix, size_t vlen, bool flat);
void frnn_panels_free(frnn_panels *panels);
size_t frnn_panels_bytes(const frnn_panels *panels);

/* Panels of one member's share. */
typedef struct frnn_range {
    size_t begin, end;
} frnn_range;

static inline frnn_range frnn_share(size_t n, size_t member, size_t members)
{
    if (members == 1) return (frnn_range){0, n}; /* divisions take as long as a step of eight units */
    return (frnn_range){n * member / members, n * (member + 1) / members};
}

#endif
