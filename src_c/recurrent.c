/* recurrent.c: recurrent layers as one object: create, plan a call, run it, free. */
#include "recurrent.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "blas.h"

frnn_status frnn_pack_gates(frnn_panels *input, frnn_panels *hidden, const frnn_recurrent_desc *desc, const frnn_recurrent_weights *weights,
                            size_t input_size, size_t first, size_t count, size_t vlen)
{
    const size_t units = desc->hidden_size, output_size = desc->proj_size ? desc->proj_size : units;
    const bool flat = desc->backend == FRNN_BACKEND_BLAS, gru_reset_after = desc->cell == FRNN_GRU && !desc->reset_before;
    frnn_matrix in = {.gates = count, .units = units, .k = input_size}, rec = {.gates = count, .units = units, .k = output_size};
    for (size_t g = 0; g < count; g++) {
        const size_t row = (first + g) * units;
        in.rows[g] = weights->weight_ih + row * input_size;
        rec.rows[g] = weights->weight_hh + row * output_size;
        in.bias_a[g] = weights->bias_ih ? weights->bias_ih + row : NULL;
        in.bias_b[g] = weights->bias_hh ? weights->bias_hh + row : NULL;
        if (gru_reset_after && first + g == 2) { /* n: the reset gate multiplies the recurrent bias too */
            rec.bias_a[g] = in.bias_b[g];
            in.bias_b[g] = NULL;
        }
    }
    frnn_status status = frnn_panels_pack(input, &in, vlen, flat);
    return status ? status : frnn_panels_pack(hidden, &rec, vlen, flat);
}

frnn_step_args frnn_step_begin(const frnn_direction *direction, const frnn_panels *hidden, frnn_totals input, const frnn_step *step,
                               const float *v, size_t v_stride, float *out)
{
    const frnn_range share = frnn_share(hidden->count, step->member, step->members);
    frnn_step_args args = {.cell = &direction->cell,
                           .hidden = hidden,
                           .input = input,
                           .v = v,
                           .v_stride = v_stride,
                           .h = step->h,
                           .c = step->c,
                           .out = out,
                           .z = step->z,
                           .stride = step->stride,
                           .rows = step->rows,
                           .panel_begin = share.begin,
                           .panel_end = share.end,
                           .backwards = step->backwards};
    if (step->recurrent) {
        frnn_product_args product = {.panels = hidden,
                                     .a = v,
                                     .a_stride = v_stride,
                                     .rows = step->rows,
                                     .panel_end = hidden->count,
                                     .out = {step->recurrent, input.panel_stride, input.row_stride}};
        frnn_blas_product(&product);
        args.recurrent = step->recurrent;
    }
    return args;
}

static const frnn_cell_ops *cell_ops(const frnn_recurrent_desc *desc)
{
    switch (desc->cell) {
    case FRNN_LSTM: return &frnn_lstm_ops;
    case FRNN_GRU: return desc->reset_before ? &frnn_gru_reset_before_ops : &frnn_gru_ops;
    case FRNN_RNN: break;
    }
    return &frnn_rnn_ops;
}

frnn_status frnn_recurrent_create(frnn_recurrent **out, const frnn_recurrent_desc *desc)
{
    *out = NULL;
    if (desc->backend == FRNN_BACKEND_BLAS && !frnn_blas_available()) return FRNN_ERR_NO_BLAS;
    frnn_recurrent *net = frnn_aligned_zeros(1, 1, sizeof *net);
    if (!net) return FRNN_ERR_MEMORY;
    *net = (frnn_recurrent){.kernels = frnn_kernels_selected(),
                            .ops = cell_ops(desc),
                            .blas = desc->backend == FRNN_BACKEND_BLAS,
                            .input_size = desc->input_size,
                            .hidden_size = desc->hidden_size,
                            .output_size = desc->proj_size ? desc->proj_size : desc->hidden_size,
                            .num_layers = desc->num_layers,
                            .directions = desc->directions,
                            .reverse = desc->reverse,
                            .merge = desc->merge};
    net->stack = frnn_aligned_zeros(net->num_layers, net->directions, sizeof *net->stack);
    frnn_status status = net->stack ? FRNN_OK : FRNN_ERR_MEMORY;
    for (size_t k = 0; !status && k < net->num_layers * net->directions; k++) {
        frnn_direction *direction = &net->stack[k];
        direction->cell = (frnn_cell){.gate = desc->gate,
                                      .candidate = desc->candidate,
                                      .hidden = desc->hidden,
                                      .clip = desc->clip,
                                      .cell_clip = desc->cell_clip,
                                      .coupled = desc->coupled_input_forget,
                                      .standard = isinf(desc->clip) && isinf(desc->cell_clip) && !desc->coupled_input_forget};
        const size_t input_size = k < net->directions ? net->input_size : net->directions * net->output_size;
        status = net->ops->pack(direction, desc, &desc->weights[k], input_size, net->kernels->vlen);
    }
    if (status) {
        frnn_recurrent_free(net);
        return status;
    }
    *out = net;
    return FRNN_OK;
}

void frnn_recurrent_free(frnn_recurrent *net)
{
    if (!net) return;
    for (size_t k = 0; net->stack && k < net->num_layers * net->directions; k++) {
        frnn_direction *direction = &net->stack[k];
        frnn_panels_free(&direction->input);
        frnn_panels_free(&direction->hidden);
        frnn_panels_free(&direction->candidate_input);
        frnn_panels_free(&direction->candidate_hidden);
        frnn_panels_free(&direction->projection);
        frnn_aligned_free(direction->peephole);
    }
    frnn_aligned_free(net->stack);
    frnn_aligned_free(net);
}

size_t frnn_recurrent_bytes(const frnn_recurrent *net)
{
    size_t bytes = 0;
    for (size_t k = 0; k < net->num_layers * net->directions; k++) {
        const frnn_direction *d = &net->stack[k];
        bytes += frnn_panels_bytes(&d->input) + frnn_panels_bytes(&d->hidden) + frnn_panels_bytes(&d->candidate_input) +
                 frnn_panels_bytes(&d->candidate_hidden) + frnn_panels_bytes(&d->projection);
    }
    return bytes;
}

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* Rows of input products that are made together: enough to use each weight often, few enough that they and their
 * results wait in the L2 cache. */
static size_t chunk_rows(const frnn_recurrent *net)
{
    enum { TOTALS_BYTES = 512 << 10, INPUT_BYTES = 1 << 20, MIN_ROWS = 48, MAX_ROWS = 512 };
    size_t rows = smaller(TOTALS_BYTES / (net->ops->gates * frnn_padded(&net->stack->hidden) * sizeof(float)),
                          INPUT_BYTES / (net->input_size * sizeof(float) + 1));
    return rows < MIN_ROWS ? MIN_ROWS : smaller(rows, MAX_ROWS);
}

/* Rows of a slice at most.  A single step of streams reads states that lie anywhere, and writes them where they were: they
 * should stay in the cache, beside everything else, until the slice is done. */
static size_t slice_rows(const frnn_recurrent *net, const frnn_recurrent_call *call)
{
    enum { FEW_ROWS = 256, GROUP_ROWS = 48 };
    const size_t rows = chunk_rows(net);
    if (call->state_rows && call->seq_len == 1) return (rows * 3 / 8 + GROUP_ROWS - 1) / GROUP_ROWS * GROUP_ROWS;
    return rows > FEW_ROWS ? rows : FEW_ROWS;
}

/* The rest of a plan: how many rows at a time, and how many steps of them. */
static void cut(frnn_plan *plan, const frnn_recurrent *net, const frnn_recurrent_call *call)
{
    const size_t parts = plan->split == FRNN_SPLIT_BATCH ? plan->groups : 1, wanted = chunk_rows(net);
    const size_t most = slice_rows(net, call), rows = (call->batch + parts - 1) / parts;
    const size_t slices = rows > most ? (rows + most - 1) / most : 1;
    plan->group_rows = (rows + slices - 1) / slices;
    plan->slice_rows = plan->group_rows * parts;
    plan->chunk_steps = plan->group_rows < wanted ? wanted / (plan->group_rows ? plan->group_rows : 1) : 1;
    if (plan->chunk_steps > call->seq_len) plan->chunk_steps = call->seq_len ? call->seq_len : 1;
}

/* Floating-point operations of one row's step through all layers. */
static size_t step_flops(const frnn_recurrent *net)
{
    size_t flops = 0;
    for (size_t k = 0; k < net->num_layers * net->directions; k++)
        flops += 2 * net->ops->gates * net->hidden_size * (net->stack[k].input.k + net->stack[k].hidden.k);
    return flops;
}

/* Three ways to share a call; the one that occupies most threads wins, the first of equal ones.
 *
 * Rows apart need no meeting, but all threads read all weights: where these are more than a core's cache holds, it takes
 * more rows to pay for that.  Directions meet once a layer.  The units of a layer meet at every step, but each member
 * keeps its own part of the weights in its cache. */
static frnn_plan make_plan(const frnn_recurrent *net, const frnn_recurrent_call *call, size_t threads)
{
    enum { MIN_CALL_FLOPS = 2000000, MIN_MEMBER_STEP_FLOPS = 40000, CACHE_BYTES = 1536 << 10, ROWS = 4, ROWS_BEYOND_CACHE = 12 };
    frnn_plan plan = {.split = FRNN_SPLIT_NONE, .groups = 1, .members = 1};
    const size_t step = step_flops(net) * call->batch, layers = net->num_layers * net->directions;
    if (threads > 1 && !net->blas && call->seq_len > 0 && step >= MIN_CALL_FLOPS / call->seq_len) {
        const frnn_panels *hidden = &net->stack->hidden;
        const size_t rows = frnn_panels_bytes(hidden) > CACHE_BYTES ? ROWS_BEYOND_CACHE : ROWS;
        const size_t by_batch = smaller(threads, call->batch / rows);
        const size_t by_direction = net->directions == 2 ? smaller(threads / 2, hidden->count) : 0; /* in each */
        const size_t by_units = smaller(smaller(threads, hidden->count), step / layers / MIN_MEMBER_STEP_FLOPS);
        if (by_batch > 1 && by_batch >= 2 * by_direction && by_batch >= by_units) {
            plan.split = FRNN_SPLIT_BATCH;
            plan.groups = by_batch;
        } else if (by_direction > 0 && 2 * by_direction >= by_units) {
            plan.split = FRNN_SPLIT_DIRECTIONS;
            plan.groups = 2;
            plan.members = by_direction;
        } else if (by_units > 1) {
            plan.split = FRNN_SPLIT_HIDDEN;
            plan.members = by_units;
        }
    }
    cut(&plan, net, call);
    return plan;
}

static size_t job_bytes(const frnn_recurrent *net, const frnn_recurrent_call *call, size_t threads)
{
    frnn_arena measure = {0};
    frnn_job_lay_out(&measure, net, call, make_plan(net, call, threads));
    return measure.used;
}

/* The team may grant fewer threads than a plan asks for: the memory must do for any number. */
size_t frnn_recurrent_scratch(const frnn_recurrent *net, const frnn_recurrent_call *call)
{
    const frnn_plan plan = make_plan(net, call, call->threads);
    size_t bytes = job_bytes(net, call, call->threads);
    for (size_t threads = plan.groups * plan.members - 1; threads > 0; threads--) {
        size_t needed = job_bytes(net, call, threads);
        bytes = needed > bytes ? needed : bytes;
    }
    return bytes;
}

bool frnn_recurrent_forward(const frnn_recurrent *net, const frnn_recurrent_call *call, void *scratch)
{
    frnn_plan plan = make_plan(net, call, call->threads);
    const size_t granted = frnn_team_take(plan.groups * plan.members);
    if (granted < plan.groups * plan.members) plan = make_plan(net, call, granted);
    frnn_arena arena = {.block = scratch};
    const bool finished = frnn_job_run(frnn_job_lay_out(&arena, net, call, plan));
    frnn_team_release(granted);
    return finished;
}

frnn_recurrent_plan frnn_recurrent_explain(const frnn_recurrent *net, const frnn_recurrent_call *call)
{
    static const char *const names[] = {"none", "batch", "directions", "hidden"};
    const frnn_plan plan = make_plan(net, call, call->threads);
    frnn_recurrent_plan told = {
        .isa = net->kernels->isa, .split = names[plan.split], .threads = plan.groups * plan.members, .chunk_steps = plan.chunk_steps};
    snprintf(told.kernel, sizeof told.kernel, "%s%s%s%s", net->blas ? "blas + " : "", net->ops->name,
             net->stack->cell.standard ? "" : " variant", net->stack->projection.w ? " + projection" : "");
    return told;
}
