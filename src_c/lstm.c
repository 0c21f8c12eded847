/* lstm.c: long short-term memory (Hochreiter & Schmidhuber 1997; peepholes: Gers & Schmidhuber 2000; projection: Sak et al. 2014).
 *
 *     i, f, g, o = W_ih x + W_hh h + b;   c = sigmoid(f) c + sigmoid(i) tanh(g);   h = W_hr (sigmoid(o) tanh(c)) */
#include <math.h>
#include <string.h>

#include "blas.h"
#include "recurrent.h"

static frnn_status pack_peephole(frnn_direction *direction, const float *peephole)
{
    const size_t units = direction->hidden.units, padded = frnn_padded(&direction->hidden);
    direction->peephole = frnn_aligned_zeros(3, padded, sizeof(float));
    if (!direction->peephole) return FRNN_ERR_MEMORY;
    for (size_t gate = 0; gate < 3; gate++) memcpy(direction->peephole + gate * padded, peephole + gate * units, units * sizeof(float));
    direction->cell.peephole = direction->peephole;
    direction->cell.standard = 0;
    return FRNN_OK;
}

static frnn_status pack(frnn_direction *direction, const frnn_recurrent_desc *desc, const frnn_recurrent_weights *weights,
                        size_t input_size, size_t vlen)
{
    frnn_cell *cell = &direction->cell;
    cell->standard =
        cell->standard && desc->gate.kind == FRNN_SIGMOID && desc->candidate.kind == FRNN_TANH && desc->hidden.kind == FRNN_TANH;
    direction->proj_clip = desc->proj_clip;
    frnn_status status = frnn_pack_gates(&direction->input, &direction->hidden, desc, weights, input_size, 0, 4, vlen);
    if (!status && weights->peephole) status = pack_peephole(direction, weights->peephole);
    if (!status && desc->proj_size) {
        frnn_matrix matrix = {.gates = 1, .units = desc->proj_size, .k = desc->hidden_size, .rows = {weights->weight_hr}};
        status = frnn_panels_pack(&direction->projection, &matrix, vlen, desc->backend == FRNN_BACKEND_BLAS);
    }
    return status;
}

static void project(const frnn_direction *direction, const frnn_step *step)
{
    const frnn_panels *matrix = &direction->projection;
    const frnn_range share = frnn_share(matrix->count, step->member, step->members);
    const size_t first = share.begin * frnn_panel_row(matrix);
    frnn_product_args args = {.panels = matrix,
                              .a = step->work,
                              .a_stride = step->stride,
                              .rows = step->rows,
                              .panel_begin = share.begin,
                              .panel_end = share.end,
                              .out = {step->h_next, frnn_panel_row(matrix), step->h_stride}};
    frnn_barrier_wait(step->barrier, step->member);
    frnn_product(step->kernels, step->recurrent != NULL, &args);
    if (isinf(direction->proj_clip) || share.begin == share.end) return;
    const frnn_activation clip = {FRNN_HARD_TANH, -direction->proj_clip, direction->proj_clip};
    size_t end = share.end * frnn_panel_row(matrix);
    if (end > matrix->units) end = matrix->units;
    for (size_t row = 0; row < step->rows; row++) {
        float *h = step->h_next + row * step->h_stride;
        step->kernels->activate(clip, end - first, h + first, h + first);
    }
}

static void step(const frnn_direction *direction, const frnn_step *step)
{
    const bool projected = direction->projection.w != NULL;
    frnn_step_args args =
        frnn_step_begin(direction, &direction->hidden, step->input, step, step->h, step->h_stride, projected ? step->work : step->h_next);
    step->kernels->lstm_step(&args);
    if (projected) project(direction, step);
}

const frnn_cell_ops frnn_lstm_ops = {.name = "lstm", .gates = 4, .pack = pack, .step = step};
