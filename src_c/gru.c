/* gru.c: gated recurrent unit (Cho et al. 2014), with both places of the reset gate.
 *
 *     r, z = sigmoid(W_ih x + b_ih + W_hh h + b_hh);   h = n + z (h - n)
 *     after:   n = tanh(W_in x + b_in + r (W_hn h + b_hn))
 *     before:  n = tanh(W_in x + b_in + W_hn (r h) + b_hn) */
#include "recurrent.h"

static void choose_standard(frnn_cell *cell, const frnn_recurrent_desc *desc)
{
    cell->standard = cell->standard && desc->gate.kind == FRNN_SIGMOID && desc->candidate.kind == FRNN_TANH;
}

static frnn_status pack(frnn_direction *direction, const frnn_recurrent_desc *desc, const frnn_recurrent_weights *weights,
                        size_t input_size, size_t vlen)
{
    choose_standard(&direction->cell, desc);
    return frnn_pack_gates(&direction->input, &direction->hidden, desc, weights, input_size, 0, 3, vlen);
}

static void step(const frnn_direction *direction, const frnn_step *step)
{
    frnn_step_args args = frnn_step_begin(direction, &direction->hidden, step->input, step, step->h, step->h_stride, step->h_next);
    step->kernels->gru_step(&args);
}

const frnn_cell_ops frnn_gru_ops = {.name = "gru", .gates = 3, .pack = pack, .step = step};

static frnn_status pack_reset_before(frnn_direction *direction, const frnn_recurrent_desc *desc, const frnn_recurrent_weights *weights,
                                     size_t input_size, size_t vlen)
{
    choose_standard(&direction->cell, desc);
    frnn_status status = frnn_pack_gates(&direction->input, &direction->hidden, desc, weights, input_size, 0, 2, vlen);
    if (status) return status;
    return frnn_pack_gates(&direction->candidate_input, &direction->candidate_hidden, desc, weights, input_size, 2, 1, vlen);
}

static void step_reset_before(const frnn_direction *direction, const frnn_step *step)
{
    frnn_step_args args = frnn_step_begin(direction, &direction->hidden, step->input, step, step->h, step->h_stride, step->work);
    step->kernels->gru_reset(&args);
    frnn_barrier_wait(step->barrier, step->member);
    args = frnn_step_begin(direction, &direction->candidate_hidden, step->candidate_input, step, step->work, step->stride, step->h_next);
    step->kernels->gru_candidate(&args);
}

const frnn_cell_ops frnn_gru_reset_before_ops = {
    .name = "gru_reset_before", .gates = 3, .pack = pack_reset_before, .step = step_reset_before};
