/* pack.c: re-lay a matrix as panels (kernels.h says how they look). */
#include "pack.h"

#include "memory.h"

/* Floats in a row of all panels. */
static size_t columns_of(const frnn_panels *panels)
{
    return (panels->gates * panels->vectors - (panels->half ? panels->gates / 2 : 0)) * panels->vlen;
}

frnn_status frnn_panels_pack(frnn_panels *panels, const frnn_matrix *matrix, size_t vlen, bool flat)
{
    const size_t gates = matrix->gates, units = matrix->units, k = matrix->k;
    *panels = (frnn_panels){.k = k, .gates = gates, .units = units, .vlen = vlen, .vectors = (units + vlen - 1) / vlen};
    panels->width = FRNN_MAX_WIDTH / gates < panels->vectors ? FRNN_MAX_WIDTH / gates : panels->vectors;
    panels->count = (panels->vectors + panels->width - 1) / panels->width;
    const bool one_vector = frnn_panel_width(panels, panels->count - 1) == 1; /* of each gate in the last panel */
    panels->half = vlen == 16 && !flat && gates > 1 && one_vector && units + vlen / 2 <= frnn_padded(panels);
    const size_t columns = columns_of(panels);
    panels->w = frnn_aligned_zeros(columns, k, sizeof(float));
    panels->bias = frnn_aligned_zeros(columns, 1, sizeof(float));
    if (!panels->w || !panels->bias) {
        frnn_panels_free(panels);
        return FRNN_ERR_MEMORY;
    }
    for (size_t p = 0; p < panels->count; p++) {
        const size_t width = frnn_panel_width(panels, p), lanes = width ? width * vlen : vlen / 2;
        const size_t row = frnn_row_vectors(gates, width) * vlen, first = p * frnn_panel_row(panels);
        float *bias = panels->bias + first;
        float *w = panels->w + (flat ? first : first * k);
        const size_t next_k = flat ? columns : row;
        for (size_t g = 0; g < gates; g++)
            for (size_t lane = 0; lane < lanes; lane++) {
                const size_t unit = p * panels->width * vlen + lane, at = g * lanes + lane;
                if (unit >= units) continue;
                if (matrix->bias_a[g]) bias[at] = matrix->bias_a[g][unit];
                if (matrix->bias_b[g]) bias[at] += matrix->bias_b[g][unit];
                for (size_t kk = 0; kk < k; kk++) w[kk * next_k + at] = matrix->rows[g][unit * k + kk];
            }
    }
    return FRNN_OK;
}

void frnn_panels_free(frnn_panels *panels)
{
    frnn_aligned_free(panels->w);
    frnn_aligned_free(panels->bias);
    *panels = (frnn_panels){0};
}

size_t frnn_panels_bytes(const frnn_panels *panels) { return columns_of(panels) * (panels->k + 1) * sizeof(float); }
