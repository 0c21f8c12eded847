/* rnn.c: simple recurrent network (Elman 1990).
 *
 *     h = tanh(W_ih x + b_ih + W_hh h + b_hh) */
#include "recurrent.h"

static frnn_status pack(frnn_direction *direction, const frnn_recurrent_desc *desc, const frnn_recurrent_weights *weights,
                        size_t input_size, size_t vlen)
{
    direction->cell.standard = direction->cell.standard && desc->candidate.kind == FRNN_TANH;
    return frnn_pack_gates(&direction->input, &direction->hidden, desc, weights, input_size, 0, 1, vlen);
}

static void step(const frnn_direction *direction, const frnn_step *step)
{
    frnn_step_args args = frnn_step_begin(direction, &direction->hidden, step->input, step, step->h, step->h_stride, step->h_next);
    step->kernels->rnn_step(&args);
}

const frnn_cell_ops frnn_rnn_ops = {.name = "rnn", .gates = 1, .pack = pack, .step = step};
