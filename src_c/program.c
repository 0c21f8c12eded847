/* program.c: a model's steps in order. */
#include <string.h>

#include "dense.h"
#include "float_mode.h"
#include "kernels/kernels.h"
#include "memory.h"
#include "poll.h"

enum { CHAIN_BLOCK = 2048 }; /* elements that a chain of element-wise steps keeps in L1 */

/* ---- Loops ---- */

/* Call `body` for every run of the innermost axis. */
#define FOR_RUNS(loops, body)                                                                       \
    do {                                                                                            \
        const size_t inner = (loops)->axes - 1;                                                     \
        size_t index[FRNN_MAX_AXES] = {0};                                                          \
        for (bool more = true; more;) {                                                             \
            body;                                                                                   \
            more = false;                                                                           \
            for (size_t axis = inner; axis-- > 0 && !more;) {                                       \
                more = ++index[axis] < (loops)->size[axis];                                         \
                const ptrdiff_t by = more ? 1 : 1 - (ptrdiff_t)(loops)->size[axis];                 \
                y += by * (loops)->y[axis], a += by * (loops)->a[axis], b += by * (loops)->b[axis]; \
                if (!more) index[axis] = 0;                                                         \
            }                                                                                       \
        }                                                                                           \
    } while (0)

static inline void copy_run(size_t n, float *y, ptrdiff_t y_stride, const float *a, ptrdiff_t a_stride)
{
    if (y_stride == 1 && a_stride == 1)
        memcpy(y, a, n * sizeof *y);
    else
        for (size_t k = 0; k < n; k++) y[(ptrdiff_t)k * y_stride] = a[(ptrdiff_t)k * a_stride];
}

static void copy(const frnn_loops *loops, float *y, const float *a)
{
    const float *b = a;
    FOR_RUNS(loops, copy_run(loops->size[inner], y, loops->y[inner], a, loops->a[inner]));
}

static void fill(const frnn_loops *loops, float value, float *y)
{
    const float *a = y, *b = y;
    FOR_RUNS(loops, for (size_t k = 0; k < loops->size[inner]; k++) y[(ptrdiff_t)k * loops->y[inner]] = value);
}

static void binary(const frnn_kernels *kernels, const frnn_program_step *step, float *y, const float *a, const float *b)
{
    const frnn_loops *loops = &step->loops;
    FOR_RUNS(loops, kernels->binary(step->binary, loops->size[inner], a, loops->a[inner], b, loops->b[inner], y, loops->y[inner]));
}

/* ---- Matrix products of two tensors: the right one is packed on the way ---- */

enum { MATMUL_ROWS = 48 };

/* Panels of a (k, n) matrix, but for their memory. */
static frnn_panels panels_of(const frnn_kernels *kernels, size_t k, size_t n)
{
    const size_t vectors = (n + kernels->vlen - 1) / kernels->vlen;
    const size_t width = vectors < FRNN_MAX_WIDTH ? vectors : FRNN_MAX_WIDTH;
    return (frnn_panels){
        .k = k, .gates = 1, .units = n, .width = width, .vectors = vectors, .count = (vectors + width - 1) / width, .vlen = kernels->vlen};
}

static void pack_columns(const frnn_panels *panels, const float *b, ptrdiff_t row, ptrdiff_t column)
{
    for (size_t p = 0; p < panels->count; p++) {
        const size_t lanes = frnn_panel_width(panels, p) * panels->vlen, first = p * panels->width * panels->vlen;
        const size_t valid = panels->units - first < lanes ? panels->units - first : lanes;
        float *w = panels->w + first * panels->k;
        for (size_t kk = 0; kk < panels->k; kk++, w += lanes) {
            copy_run(valid, w, 1, b + (ptrdiff_t)kk * row + (ptrdiff_t)first * column, column);
            memset(w + valid, 0, (lanes - valid) * sizeof *w);
        }
    }
}

/* The memory of a product in scratch, or with a NULL block its size. */
static float *lay_out_matmul(const frnn_kernels *kernels, const frnn_program_step *step, frnn_panels *panels, frnn_arena *arena)
{
    *panels = panels_of(kernels, step->k, step->n);
    const size_t columns = frnn_padded(panels);
    panels->w = frnn_arena_take(arena, columns * step->k * sizeof(float));
    panels->bias = frnn_arena_take(arena, columns * sizeof(float));
    return frnn_arena_take(arena, MATMUL_ROWS * columns * sizeof(float));
}

static bool multiply(const frnn_kernels *kernels, const frnn_program_step *step, const frnn_panels *panels, float *block, float *y,
                     const float *a, frnn_poll *poll)
{
    const size_t columns = frnn_padded(panels);
    for (size_t row = 0; row < step->rows; row += MATMUL_ROWS) {
        if (frnn_poll_stops(poll)) return false;
        const size_t rows = step->rows - row < MATMUL_ROWS ? step->rows - row : MATMUL_ROWS;
        const frnn_product_args args = {.panels = panels,
                                        .a = a + (ptrdiff_t)row * step->a_row,
                                        .a_stride = (size_t)step->a_row,
                                        .rows = rows,
                                        .panel_end = panels->count,
                                        .out = {block, frnn_panel_row(panels), columns}};
        kernels->product(&args);
        for (size_t r = 0; r < rows; r++) memcpy(y + (ptrdiff_t)(row + r) * step->y_row, block + r * columns, step->n * sizeof *y);
    }
    return true;
}

static bool matmul(const frnn_kernels *kernels, const frnn_program_step *step, float *y, const float *a, const float *b, void *scratch,
                   frnn_poll *poll)
{
    frnn_panels panels;
    frnn_arena arena = {scratch, 0};
    float *block = lay_out_matmul(kernels, step, &panels, &arena);
    const float *packed = NULL;
    memset(panels.bias, 0, frnn_padded(&panels) * sizeof(float));
    /* The innermost axis of the loops always has one element. */
    FOR_RUNS(&step->loops, {
        if (b != packed) pack_columns(&panels, b, step->b_row, step->b_column);
        packed = b;
        if (!multiply(kernels, step, &panels, block, y, a, poll)) return false;
    });
    return true;
}

/* ---- Steps ---- */

static inline float *at_operand(float *const *at, frnn_operand operand)
{
    return operand.slot == FRNN_NO_SLOT ? NULL : at[operand.slot] + operand.offset;
}

static frnn_recurrent_call call_of(const frnn_program_step *step, float *const *at, size_t threads)
{
    frnn_recurrent_call call = step->call;
    call.threads = threads;
    if (at) {
        call.x = at_operand(at, step->a);
        call.h_0 = at_operand(at, step->b), call.c_0 = at_operand(at, step->c);
        call.y = at_operand(at, step->y);
        call.h_n = at_operand(at, step->y_2), call.c_n = at_operand(at, step->y_3);
    }
    return call;
}

/* False: the poll stopped it. */
static bool run_step(const frnn_kernels *kernels, const frnn_program_step *step, float *const *at, size_t threads, void *scratch,
                     frnn_poll *poll)
{
    float *y = at_operand(at, step->y);
    const float *a = at_operand(at, step->a), *b = at_operand(at, step->b), *c = at_operand(at, step->c);
    switch (step->kind) {
    case FRNN_STEP_COPY: copy(&step->loops, y, a); break;
    case FRNN_STEP_FILL: fill(&step->loops, step->value, y); break;
    case FRNN_STEP_BINARY: binary(kernels, step, y, a, b); break;
    case FRNN_STEP_ACTIVATE: kernels->activate(step->activation, step->n, a, y); break;
    case FRNN_STEP_REDUCE: kernels->reduce(step->reduction, step->rows, step->n, a, y); break;
    case FRNN_STEP_SOFTMAX: kernels->softmax(step->rows, step->n, a, y, step->logarithm); break;
    case FRNN_STEP_LAYER_NORM: kernels->layer_norm(step->rows, step->n, a, b, c, step->value, y); break;
    case FRNN_STEP_SCALE_SHIFT: kernels->scale_shift(step->rows, step->n, a, b, c, y); break;
    case FRNN_STEP_MATMUL: return matmul(kernels, step, y, a, b, scratch, poll);
    case FRNN_STEP_DENSE: return frnn_dense_run(step->dense, step->rows, a, step->a_row, y, step->y_row, threads, scratch, poll);
    case FRNN_STEP_RECURRENT: break; /* the program's own: its call has a poll */
    }
    return true;
}

/* Element-wise steps over the same elements, a block through all of them before the next. */
static void run_chain(const frnn_kernels *kernels, const frnn_program_step *steps, size_t count, float *const *at)
{
    for (size_t first = 0; first < steps->n; first += CHAIN_BLOCK) {
        const size_t n = steps->n - first < CHAIN_BLOCK ? steps->n - first : CHAIN_BLOCK;
        for (const frnn_program_step *step = steps; step < steps + count; step++) {
            float *y = at_operand(at, step->y) + first;
            const float *a = at_operand(at, step->a), *b = at_operand(at, step->b);
            if (step->kind == FRNN_STEP_ACTIVATE) {
                kernels->activate(step->activation, n, a + first, y);
                continue;
            }
            const ptrdiff_t a_stride = step->loops.a[0], b_stride = step->loops.b[0];
            kernels->binary(step->binary, n, a + (ptrdiff_t)first * a_stride, a_stride, b + (ptrdiff_t)first * b_stride, b_stride, y, 1);
        }
    }
}

static size_t step_scratch(const frnn_kernels *kernels, const frnn_program_step *step, size_t threads)
{
    if (step->kind == FRNN_STEP_DENSE) return frnn_dense_scratch(step->dense, step->rows, threads);
    if (step->kind == FRNN_STEP_RECURRENT) {
        const frnn_recurrent_call call = call_of(step, NULL, threads);
        return frnn_recurrent_scratch(step->recurrent, &call);
    }
    if (step->kind != FRNN_STEP_MATMUL) return 0;
    frnn_panels panels;
    frnn_arena arena = {NULL, 0};
    lay_out_matmul(kernels, step, &panels, &arena);
    return arena.used;
}

size_t frnn_program_scratch(const frnn_kernels *kernels, const frnn_program_step *steps, size_t count, size_t threads)
{
    size_t most = 0;
    for (const frnn_program_step *step = steps; step < steps + count; step++) {
        const size_t bytes = step_scratch(kernels, step, threads);
        if (bytes > most) most = bytes;
    }
    return most;
}

bool frnn_program_run(const frnn_kernels *kernels, const frnn_program_step *steps, size_t count, float *const *at, size_t threads,
                      void *scratch, bool (*poll)(void *arg), void *poll_arg)
{
    frnn_float_mode mode = frnn_float_mode_set();
    frnn_poll asked = {.ask = poll, .arg = poll_arg, .callers_mode = mode};
    bool finished = true;
    for (const frnn_program_step *step = steps; finished && step < steps + count;) {
        if (step->chain) {
            run_chain(kernels, step, step->chain, at);
            step += step->chain;
        } else if (step->kind == FRNN_STEP_RECURRENT) {
            const frnn_recurrent_call call = call_of(step++, at, threads);
            frnn_float_mode_restore(mode); /* polls run foreign code */
            finished = frnn_recurrent_forward(step[-1].recurrent, &call, scratch);
            mode = frnn_float_mode_set();
        } else
            finished = run_step(kernels, step++, at, threads, scratch, &asked);
        finished = finished && !frnn_poll_stops(&asked);
    }
    frnn_float_mode_restore(mode);
    return finished;
}
