/* kernels.c: what the kernels reach of what this core can do, in the same minute.
 *
 *     python bench/kernels.py [ISA]
 *
 * Ceilings: float32 FMA from registers, and weights read from L2, L3 and memory.  Beside them, interleaved and as the
 * smallest of many rounds: the product alone, and one step of each cell (product and gates).  A batch is measured
 * against the FMA peak, one row against the rate at which its weights can be read. */
#include <immintrin.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "float_mode.h"
#include "memory.h"
#include "pack.h"

enum { ROUNDS = 15, ALIGN = 64 };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static float uniform(void)
{
    static unsigned state = 12345;
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) * 0x1p-23f - 1.0f;
}

static float *random_floats(size_t n, float scale)
{
    float *p = aligned_alloc(ALIGN, (n * sizeof *p + ALIGN - 1) / ALIGN * ALIGN);
    for (size_t k = 0; k < n; k++) p[k] = scale * uniform();
    return p;
}

/* ---- Ceilings ---- */

#define EACH(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11)
#define FMA(i) __asm__ volatile("vfmadd231ps %1, %2, %0" : "+v"(a[i]) : "v"(x), "v"(y));
#define PEAK(name, type, set, lanes, isa)                                                    \
    static __attribute__((target(isa))) double name(void)                                    \
    {                                                                                        \
        const long turns = 400000;                                                           \
        type x = set(0.7071f), y = set(-0.3713f), a[12] = {x, y, x, y, x, y, x, y, x, y, x}; \
        double start = now();                                                                \
        for (long k = 0; k < turns; k++) { EACH(FMA) }                                       \
        return 2.0 * lanes * 12 * (double)turns / (now() - start) / 1e9;                     \
    }
PEAK(fma_avx512, __m512, _mm512_set1_ps, 16, "avx512f")
PEAK(fma_avx2, __m256, _mm256_set1_ps, 8, "avx2,fma")

static double fma_peak(const char *isa) { return strcmp(isa, "avx512") == 0 ? fma_avx512() : fma_avx2(); }

/* GB/s of one pass after another over `bytes` of memory, aligned vectors and independent sums. */
static __attribute__((target("avx2"))) double read_rate(const float *p, size_t bytes)
{
    const size_t n = bytes / sizeof *p, passes = ((size_t)1 << 27) / bytes + 1;
    __m256 a[8];
    for (int j = 0; j < 8; j++) a[j] = _mm256_setzero_ps();
    double start = now();
    for (size_t pass = 0; pass < passes; pass++)
        for (size_t k = 0; k < n; k += 64)
            for (int j = 0; j < 8; j++) a[j] = _mm256_add_ps(a[j], _mm256_load_ps(p + k + 8 * j));
    double took = now() - start;
    for (int j = 1; j < 8; j++) a[0] = _mm256_add_ps(a[0], a[j]);
    volatile float sink = a[0][0];
    (void)sink;
    return (double)bytes * (double)passes / took / 1e9;
}

/* ---- Kernels ---- */

typedef struct {
    const char *name;
    size_t gates;
    void (*step)(const frnn_step_args *);
} cell;

typedef struct {
    frnn_panels panels;
    float *v, *h, *c, *out, *z, *totals;
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
    free(weights);
    f.v = random_floats(rows * f.stride, 1.0f);
    f.h = f.v;
    f.c = random_floats(rows * f.stride, 1.0f);
    f.out = random_floats(rows * f.stride, 1.0f);
    f.z = random_floats(rows * f.stride, 1.0f);
    f.totals = random_floats(rows * frnn_results_row(&f.panels), 1.0f);
    const size_t row = frnn_panel_row(&f.panels), count = frnn_panel_count(&f.panels);
    const frnn_totals totals = {f.totals, rows * row, row};
    f.step = (frnn_step_args){.cell = maths,
                              .input = totals,
                              .v = f.v,
                              .v_stride = f.stride,
                              .h = f.h,
                              .c = f.c,
                              .out = f.out,
                              .z = f.z,
                              .stride = f.stride,
                              .rows = rows,
                              .panel_end = count};
    f.product = (frnn_product_args){.a = f.v, .a_stride = f.stride, .rows = rows, .panel_end = count, .out = totals};
    return f;
}

static void release(fixture *f)
{
    frnn_panels_free(&f->panels);
    free(f->v), free(f->c), free(f->out), free(f->z), free(f->totals);
}

static double shortest(double best, double took) { return took < best ? took : best; }

static void measure(const frnn_kernels *kernels, const cell *kind, size_t hidden, size_t rows, const float *memory)
{
    const frnn_cell maths = {.gate = {FRNN_SIGMOID, 0, 0},
                             .candidate = {FRNN_TANH, 0, 0},
                             .hidden = {FRNN_TANH, 0, 0},
                             .clip = INFINITY,
                             .cell_clip = INFINITY,
                             .standard = 1};
    fixture f = make(kernels, &maths, kind->gates, hidden, rows);
    f.step.hidden = f.product.panels = &f.panels;
    const double flops = 2.0 * (double)(kind->gates * hidden * hidden * rows), bytes = (double)frnn_panels_bytes(&f.panels);
    const size_t repeats = (size_t)(1e8 / flops) + 1;
    double peak = 0, rate = 0, product = INFINITY, step = INFINITY;
    for (int round = 0; round < ROUNDS; round++) {
        if (rows > 1)
            peak = fmax(peak, fma_peak(kernels->isa));
        else
            rate = fmax(rate, read_rate(memory, frnn_panels_bytes(&f.panels) / 256 * 256));
        double start = now();
        for (size_t k = 0; k < repeats; k++) kernels->product(&f.product);
        product = shortest(product, (now() - start) / (double)repeats);
        start = now();
        for (size_t k = 0; k < repeats; k++) {
            f.step.backwards = k % 2;
            kind->step(&f.step);
        }
        step = shortest(step, (now() - start) / (double)repeats);
    }
    printf("%-4s H%-5zu rows %-4zu product %9.2f us  step %9.2f us  ", kind->name, hidden, rows, product * 1e6, step * 1e6);
    if (rows > 1)
        printf("%6.1f GFLOP/s of %6.1f: product %3.0f %%, step %3.0f %%", flops / step / 1e9, peak, 100 * flops / product / 1e9 / peak,
               100 * flops / step / 1e9 / peak);
    else
        printf("%6.1f GB/s of %6.1f: product %3.0f %%, step %3.0f %%", bytes / step / 1e9, rate, 100 * bytes / product / 1e9 / rate,
               100 * bytes / step / 1e9 / rate);
    printf("  gates %6.2f ns a unit of a row\n", (step - product) * 1e9 / (double)(hidden * rows));
    release(&f);
}

int main(int argc, char **argv)
{
    if (argc > 1 && frnn_set_isa(argv[1])) return fprintf(stderr, "%s: not on this machine\n", argv[1]), 1;
    const frnn_kernels *kernels = frnn_kernels_selected();
    const frnn_float_mode mode = frnn_float_mode_set();
    const size_t largest = (size_t)64 << 20;
    float *memory = random_floats(largest / sizeof(float), 1.0f);
    printf("%s: FMA %.0f GFLOP/s; reads, GB/s:", kernels->isa, fma_peak(kernels->isa));
    for (size_t bytes = (size_t)32 << 10; bytes <= largest; bytes *= 8) printf("  %zu KiB %.0f", bytes >> 10, read_rate(memory, bytes));
    printf("\n");
    const cell cells[] = {{"LSTM", 4, kernels->lstm_step}, {"GRU", 3, kernels->gru_step}, {"RNN", 1, kernels->rnn_step}};
    const size_t hidden[] = {128, 256, 512, 1024}, rows[] = {1, 2, 3, 4, 6, 8, 16, 32, 128};
    for (size_t c = 0; c < sizeof cells / sizeof *cells; c++)
        for (size_t h = 0; h < sizeof hidden / sizeof *hidden; h++)
            for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) measure(kernels, &cells[c], hidden[h], rows[r], memory);
    frnn_float_mode_restore(mode);
    free(memory);
    return 0;
}
