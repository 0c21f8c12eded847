/* kernels.c: the product alone, and one step of each cell (product and gates), beside what this core can do.
 *
 *     kernels ISA CELL HIDDEN ROWS [CELL HIDDEN ROWS]...
 *
 * Prints  CELL HIDDEN ROWS product step ceiling flops bytes , in seconds, a second and a step.  The ceiling is the FMA
 * peak, for one row the rate at which its weights can be read.  All take turns; each is the best of many rounds. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ceilings.h"
#include "float_mode.h"
#include "memory.h"
#include "pack.h"

enum { ROUNDS = 15 };

static float uniform(void)
{
    static unsigned state = 12345;
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) * 0x1p-23f - 1.0f;
}

static float *random_floats(size_t n, float scale)
{
    float *p = frnn_aligned_zeros(n, 1, sizeof *p);
    if (!p) exit(1);
    for (size_t k = 0; k < n; k++) p[k] = scale * uniform();
    return p;
}

typedef struct {
    const char *name;
    size_t gates;
    void (*step)(const frnn_step_args *);
} cell;

typedef struct {
    frnn_panels panels;
    float *v, *h, *c, *out, *totals;
    size_t rows, stride;
    frnn_step_args step;
    frnn_product_args product;
} fixture;

static size_t row_stride(size_t n) { return (n + 15) / 16 * 16 + 16; }

static fixture make(const frnn_kernels *kernels, const frnn_cell *maths, size_t gates, size_t hidden, size_t rows)
{
    fixture f = {.rows = rows, .stride = row_stride(hidden)};
    float *weights = random_floats(gates * hidden * hidden, 1.0f / sqrtf((float)hidden));
    frnn_matrix matrix = {.gates = gates, .units = hidden, .k = hidden};
    for (size_t g = 0; g < gates; g++) matrix.rows[g] = weights + g * hidden * hidden;
    if (frnn_panels_pack(&f.panels, &matrix, kernels->vlen, false)) exit(1);
    frnn_aligned_free(weights);
    f.v = random_floats(rows * f.stride, 1.0f);
    f.h = f.v;
    f.c = random_floats(rows * f.stride, 1.0f);
    f.out = random_floats(rows * f.stride, 1.0f);
    f.totals = random_floats(rows * frnn_results_row(&f.panels), 1.0f);
    const size_t row = frnn_panel_row(&f.panels), count = f.panels.count;
    const frnn_totals totals = {f.totals, rows * row, row};
    f.step = (frnn_step_args){.cell = maths,
                              .input = totals,
                              .v = f.v,
                              .v_stride = f.stride,
                              .h = f.h,
                              .c = f.c,
                              .out = f.out,
                              .stride = f.stride,
                              .rows = rows,
                              .panel_end = count};
    f.product = (frnn_product_args){.a = f.v, .a_stride = f.stride, .rows = rows, .panel_end = count, .out = totals};
    return f;
}

static void release(fixture *f)
{
    frnn_panels_free(&f->panels);
    frnn_aligned_free(f->v), frnn_aligned_free(f->c), frnn_aligned_free(f->out), frnn_aligned_free(f->totals);
}

static double smaller(double a, double b) { return a < b ? a : b; }
static double greater(double a, double b) { return a > b ? a : b; }

static void measure(const frnn_kernels *kernels, const ceiling *core, const cell *kind, size_t hidden, size_t rows)
{
    const frnn_cell maths = {.gate = {FRNN_SIGMOID, 0, 0},
                             .candidate = {FRNN_TANH, 0, 0},
                             .hidden = {FRNN_TANH, 0, 0},
                             .clip = INFINITY,
                             .cell_clip = INFINITY,
                             .standard = 1};
    fixture f = make(kernels, &maths, kind->gates, hidden, rows);
    f.step.hidden = f.product.panels = &f.panels;
    const double flops = 2.0 * (double)(kind->gates * hidden * hidden * rows);
    const size_t bytes = frnn_panels_bytes(&f.panels), repeats = (size_t)(1e8 / flops) + 1;
    char *memory = ceiling_memory(bytes);
    if (!memory) exit(1);
    double limit = 0, product = INFINITY, step = INFINITY;
    for (int round = 0; round < ROUNDS; round++) {
        limit = greater(limit, rows > 1 ? core->fma_peak() : core->read_rate(memory, bytes));
        double start = now();
        for (size_t k = 0; k < repeats; k++) kernels->product(&f.product);
        product = smaller(product, (now() - start) / (double)repeats);
        start = now();
        for (size_t k = 0; k < repeats; k++) {
            f.step.backwards = k % 2;
            kind->step(&f.step);
        }
        step = smaller(step, (now() - start) / (double)repeats);
    }
    printf("%s %zu %zu %.4g %.4g %.4g %.0f %zu\n", kind->name, hidden, rows, product, step, limit * 1e9, flops, bytes);
    fflush(stdout);
    free(memory);
    release(&f);
}

int main(int argc, char **argv)
{
    if (argc < 2 || argc % 3 != 2) return fprintf(stderr, "kernels ISA CELL HIDDEN ROWS [CELL HIDDEN ROWS]...\n"), 2;
    const ceiling *core = ceiling_of(argv[1]);
    if (frnn_set_isa(argv[1]) || !core) return fprintf(stderr, "%s: not on this machine\n", argv[1]), 1;
    const frnn_kernels *kernels = frnn_kernels_selected();
    const cell cells[] = {{"LSTM", 4, kernels->lstm_step}, {"GRU", 3, kernels->gru_step}, {"RNN", 1, kernels->rnn_step}};
    const frnn_float_mode mode = frnn_float_mode_set();
    for (int k = 2; k < argc; k += 3)
        for (size_t c = 0; c < sizeof cells / sizeof *cells; c++)
            if (strcmp(cells[c].name, argv[k]) == 0)
                measure(kernels, core, &cells[c], strtoull(argv[k + 1], NULL, 10), strtoull(argv[k + 2], NULL, 10));
    frnn_float_mode_restore(mode);
    return 0;
}
