/* dense.c: y = activation(x W^T + b), rows split over the threads. */
#include <string.h>

#include "blas.h"
#include "dense.h"
#include "float_mode.h"
#include "memory.h"
#include "pack.h"
#include "team.h"

struct frnn_dense {
    const frnn_kernels *kernels;
    bool blas;
    frnn_activation activation;
    frnn_panels panels;
};

enum { BLOCK_ROWS = 48, MIN_THREAD_FLOPS = 2000000 };

frnn_status frnn_dense_create(frnn_dense **out, size_t input_size, size_t output_size, const float *weight, const float *bias,
                              frnn_activation activation, frnn_backend backend)
{
    *out = NULL;
    if (backend == FRNN_BACKEND_BLAS && !frnn_blas_available()) return FRNN_ERR_NO_BLAS;
    frnn_dense *layer = frnn_aligned_zeros(1, 1, sizeof *layer);
    if (!layer) return FRNN_ERR_MEMORY;
    layer->kernels = frnn_kernels_selected();
    layer->blas = backend == FRNN_BACKEND_BLAS;
    layer->activation = activation;
    const frnn_matrix matrix = {.gates = 1, .units = output_size, .k = input_size, .rows = {weight}, .bias_a = {bias}};
    frnn_status status = frnn_panels_pack(&layer->panels, &matrix, layer->kernels->vlen, layer->blas);
    if (status) {
        frnn_dense_free(layer);
        return status;
    }
    *out = layer;
    return FRNN_OK;
}

void frnn_dense_free(frnn_dense *layer)
{
    if (!layer) return;
    frnn_panels_free(&layer->panels);
    frnn_aligned_free(layer);
}

size_t frnn_dense_bytes(const frnn_dense *layer) { return frnn_panels_bytes(&layer->panels); }

/* Blocks are padded to whole vectors in scratch, then written without the padding. */
static size_t block_floats(const frnn_dense *layer) { return BLOCK_ROWS * frnn_padded(&layer->panels); }

size_t frnn_dense_scratch(const frnn_dense *layer, size_t rows, size_t threads)
{
    (void)rows;
    return (threads ? threads : 1) * block_floats(layer) * sizeof(float);
}

typedef struct {
    const frnn_dense *layer;
    size_t rows, members;
    const float *x;
    float *y;
    ptrdiff_t x_stride, y_stride;
    float *scratch;
    frnn_poll *poll;
    _Atomic bool stop;
} dense_job;

/* Whether the job ends before the next part of it. */
static bool stopped(dense_job *job, size_t member)
{
    if (member == 0 && frnn_poll_stops(job->poll)) job->stop = true;
    return job->stop;
}

/* A block of rows, so few panels at a time that their product takes milliseconds. */
static bool multiply(dense_job *job, size_t member, frnn_product_args *args)
{
    enum { PART_MACS = 1 << 24 };
    const frnn_panels *panels = &job->layer->panels;
    const size_t macs = args->rows * panels->k * frnn_panel_row(panels);
    const size_t part = job->layer->blas || macs == 0 ? panels->count : PART_MACS / macs + 1;
    for (size_t begin = 0; begin < panels->count; begin += part) {
        if (begin && stopped(job, member)) return false;
        args->panel_begin = begin;
        args->panel_end = panels->count - begin < part ? panels->count : begin + part;
        frnn_product(job->layer->kernels, job->layer->blas, args);
    }
    return true;
}

static void run_member(void *arg, size_t member)
{
    dense_job *job = arg;
    const frnn_dense *layer = job->layer;
    const frnn_panels *panels = &layer->panels;
    const size_t padded = frnn_padded(panels);
    const frnn_float_mode mode = frnn_float_mode_set();
    const frnn_range share = frnn_share(job->rows, member, job->members);
    float *block = job->scratch + member * block_floats(layer);
    for (size_t row = share.begin; row < share.end; row += BLOCK_ROWS) {
        if (row > share.begin && stopped(job, member)) break;
        const size_t rows = share.end - row < BLOCK_ROWS ? share.end - row : BLOCK_ROWS;
        frnn_product_args args = {.panels = panels,
                                  .a = job->x + (ptrdiff_t)row * job->x_stride,
                                  .a_stride = (size_t)job->x_stride,
                                  .rows = rows,
                                  .out = {block, frnn_panel_row(panels), padded}};
        if (!multiply(job, member, &args)) break;
        for (size_t r = 0; r < rows; r++) {
            float *y = job->y + (ptrdiff_t)(row + r) * job->y_stride;
            if (layer->activation.kind == FRNN_LINEAR)
                memcpy(y, block + r * padded, panels->units * sizeof(float));
            else
                layer->kernels->activate(layer->activation, panels->units, block + r * padded, y);
        }
    }
    frnn_float_mode_restore(mode);
}

bool frnn_dense_run(const frnn_dense *layer, size_t rows, const float *x, ptrdiff_t x_stride, float *y, ptrdiff_t y_stride, size_t threads,
                    void *scratch, frnn_poll *poll)
{
    const double flops = 2.0 * (double)rows * (double)layer->panels.k * (double)layer->panels.units;
    const size_t wanted = layer->blas || flops < MIN_THREAD_FLOPS || rows < threads ? 1 : threads;
    const size_t members = frnn_team_take(wanted);
    dense_job job = {layer, rows, members, x, y, x_stride, y_stride, scratch, poll, false};
    frnn_team_run(members, run_member, &job);
    frnn_team_release(members);
    return !job.stop;
}

bool frnn_dense_forward(const frnn_dense *layer, size_t rows, const float *x, ptrdiff_t x_stride, float *y, ptrdiff_t y_stride,
                        size_t threads, void *scratch, bool (*poll)(void *arg), void *poll_arg)
{
    frnn_poll asked = {.ask = poll, .arg = poll_arg, .callers_mode = frnn_float_mode_set()};
    const bool finished = frnn_dense_run(layer, rows, x, x_stride, y, y_stride, threads, scratch, &asked);
    frnn_float_mode_restore(asked.callers_mode);
    return finished;
}
