/* kernels.h: the contract of every kernel.  One complete table per instruction set; callers never test a field.
 *
 * Panels.  A weight matrix (gates * units, k) is re-laid once.  Its units stand in vectors of `vlen`; `width` such
 * vectors of every gate form a panel, the last panel has what remains:
 *
 *     panel[kk][gate][vector][lane] = W[gate * units + (first + vector) * vlen + lane, kk]      (0 beyond the units)
 *
 * so one pass over a panel gives every gate of the same units.  Results for a panel are laid as [row][gate][vector][lane].
 *
 * Where vlen is 16, there are several gates, and the last panel would have one vector of each with at most 8 units, it is
 * a half panel: panel[kk][gate][lane] with 8 lanes, padded to whole vectors: LSTM [i|f][g|o], GRU [r|z][n|0].  Its results
 * are laid alike, in a place as long as a full panel's.
 *
 * Order of sums.  total = start; for each block of FRNN_SUM_BLOCK consecutive k: p = 0, p = fma(w_k, v_k, p) in the
 * order of k; total += p.  No kernel may use another order: a row's bits depend on nothing but the row.
 *
 * Alignment and aliasing.  Panels are aligned to 64 bytes, other pointers to 4.  Outputs alias no input, except where
 * a kernel says so.  Kernels may write padding lanes up to the next multiple of vlen where a stride leaves room. */
#ifndef FRNN_KERNELS_H
#define FRNN_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "fastrnn.h"

enum { FRNN_SUM_BLOCK = 128, FRNN_MAX_WIDTH = 4 };

/* One packed matrix. */
typedef struct frnn_panels {
    size_t k;       /* length of a dot product */
    size_t gates;   /* blocks of rows */
    size_t units;   /* rows in a block */
    size_t width;   /* vectors of each gate in a full panel; gates * width is at most FRNN_MAX_WIDTH */
    size_t vectors; /* of each gate: ceil(units / vlen) */
    size_t count;   /* panels: ceil(vectors / width) */
    size_t vlen;
    bool half;   /* the last panel is a half panel */
    float *w;    /* NULL if the matrix is not there (k = 0) */
    float *bias; /* the start of each total, laid like one row of results; never NULL */
} frnn_panels;

/* Results of a product: panel p, row r at at[p * panel_stride + r * row_stride]. */
typedef struct frnn_totals {
    float *at;
    size_t panel_stride, row_stride;
} frnn_totals;

/* out = bias + a W^T for rows [0, rows) and the panels [panel_begin, panel_end). */
typedef struct frnn_product_args {
    const frnn_panels *panels;
    const float *a; /* (rows, k) */
    size_t a_stride;
    size_t rows, panel_begin, panel_end;
    frnn_totals out;
} frnn_product_args;

/* What a cell does besides the product; one table row per layer, read-only. */
typedef struct frnn_cell {
    frnn_activation gate, candidate, hidden;
    float clip;            /* bound on every pre-activation; INFINITY: none */
    float cell_clip;       /* bound on c; INFINITY: none */
    int coupled;           /* LSTM: i = 1 - f */
    int standard;          /* sigmoid gates, tanh elsewhere, nothing of the above nor peepholes: the short path */
    const float *peephole; /* LSTM: [i, f, o][padded units], or NULL */
} frnn_cell;

/* One step of a cell for rows [0, rows) and the panels [panel_begin, panel_end). */
typedef struct frnn_step_args {
    const frnn_cell *cell;
    const frnn_panels *hidden; /* recurrent matrix; its bias is the start of totals that do not begin with `input` */
    frnn_totals input;         /* bias and input part of the totals, read only */
    const float *recurrent;    /* NULL, or the recurrent part already summed, laid as `input` (BLAS backend) */
    const float *v;            /* (rows, k): what the recurrent matrix is applied to (h, or r * h) */
    size_t v_stride;
    const float *h; /* (rows, units): the old h; v may be h */
    float *c;       /* (rows, units): LSTM, in place */
    float *out;     /* (rows, units): the new h (gru_reset: r * h); not v, not h */
    float *z;       /* (rows, units): reset-before GRU, z from gru_reset to gru_candidate */
    size_t stride;  /* of h, c, out and z; at least the padded units */
    size_t rows, panel_begin, panel_end;
    bool backwards; /* walk the panels from the last to the first; no bit depends on it */
} frnn_step_args;

struct frnn_kernels {
    const char *isa;
    size_t vlen;

    void (*product)(const frnn_product_args *args);

    /* i, f, g, o = totals;  c = f c + i g;  out = o hidden(c) */
    void (*lstm_step)(const frnn_step_args *args);
    /* r, z = gate(totals);  n = candidate(n_input + r n_recurrent);  out = n + z (h - n) */
    void (*gru_step)(const frnn_step_args *args);
    /* Reset-before GRU, first half: out = r * h, and z kept. */
    void (*gru_reset)(const frnn_step_args *args);
    /* Reset-before GRU, second half: n = candidate(n_input + W (r h));  out = n + z (h - n) */
    void (*gru_candidate)(const frnn_step_args *args);
    /* out = candidate(totals) */
    void (*rnn_step)(const frnn_step_args *args);

    /* y = activation(x); y may be x */
    void (*activate)(frnn_activation activation, size_t n, const float *x, float *y);
    /* y = softmax(x), or its logarithm, over each row of n; y may be x */
    void (*softmax)(size_t rows, size_t n, const float *x, float *y, int logarithm);
    /* y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias over each row of n; weight and bias may be NULL */
    void (*layer_norm)(size_t rows, size_t n, const float *x, const float *weight, const float *bias, float eps, float *y);
    /* y = x * scale + shift, element-wise over each row of n */
    void (*scale_shift)(size_t rows, size_t n, const float *x, const float *scale, const float *shift, float *y);

    /* y = a (kind) b, each with its stride, 0 repeats an element; y may be a or b where the strides are equal */
    void (*binary)(frnn_binary_kind kind, size_t n, const float *a, ptrdiff_t a_stride, const float *b, ptrdiff_t b_stride, float *y,
                   ptrdiff_t y_stride);
    /* y[row] = the reduction of each row of n */
    void (*reduce)(frnn_reduction reduction, size_t rows, size_t n, const float *x, float *y);
};

/* Padded length of a row of one gate. */
static inline size_t frnn_padded(const frnn_panels *panels) { return panels->vectors * panels->vlen; }

/* Floats of one row of results of a full panel. */
static inline size_t frnn_panel_row(const frnn_panels *panels) { return panels->gates * panels->width * panels->vlen; }

/* Floats of one row of results of all panels, each as long as a full one. */
static inline size_t frnn_results_row(const frnn_panels *panels) { return panels->count * frnn_panel_row(panels); }

/* Whole vectors of each gate in panel p; 0: a half panel. */
static inline size_t frnn_panel_width(const frnn_panels *panels, size_t p)
{
    size_t left = panels->vectors - p * panels->width;
    if (left == 1 && panels->half) return 0;
    return left < panels->width ? left : panels->width;
}

/* Vectors in a row of a panel. */
static inline size_t frnn_row_vectors(size_t gates, size_t width) { return width ? gates * width : (gates + 1) / 2; }

#endif
