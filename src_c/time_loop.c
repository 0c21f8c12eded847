/* time_loop.c: a recurrent call from its first step to its last.
 *
 * Rows are sorted by length, longest first, so the rows that still run are always the first ones and a step costs
 * what its real rows cost.  Time goes in chunks: the input products of a chunk are made at once, then its steps run
 * one by one; a stack of one direction takes each chunk through all its layers, so memory does not grow with time.
 *
 * The members of a group share rows and split the units; each reads what the others wrote only after a barrier. */
#define _GNU_SOURCE
#include <string.h>

#include "blas.h"
#include "poll.h"
#include "recurrent.h"

/* A (batch, time, features) array by strides, of the caller or in scratch; or rows that each lie somewhere. */
typedef struct {
    float *at;
    ptrdiff_t batch, time;
    float *const *rows; /* NULL: by `at` and `batch` */
    size_t offset;      /* of the features in such a row */
} sequence;

/* h and c of one layer and direction while it runs; h[current] is the newest. */
typedef struct {
    float *h[2], *c;
} state;

typedef struct {
    size_t first_direction, end_direction, members;
    frnn_barrier barrier;
    size_t rows, steps;    /* steps: the longest length */
    int64_t *row, *length; /* which row of the batch, and its length; longest first */
    bool stop;
    float *inputs[2]; /* rows that enter a layer in this chunk; layers take turns */
    float *gates;     /* input parts of the totals of a chunk */
    float *recurrent, *work, *z;
    state *states; /* one for each layer of a chain */
} group;

struct frnn_job {
    const frnn_recurrent *net;
    const frnn_recurrent_call *call;
    frnn_plan plan;
    frnn_range slice; /* rows of the batch */
    size_t chain;     /* layers that a chunk passes before the next chunk */
    size_t stride, input_stride, gate_floats;
    group *groups;
    float *sequences[2]; /* between layers of two directions, and before a merge */
    frnn_barrier all;
    _Atomic bool stop;
    frnn_poll poll;
};

/* ---- Layout ---- */

/* Rows a power of two apart would fall into the same cache sets. */
static size_t row_stride(size_t floats) { return (floats + 15) / 16 * 16 + 16; }

static size_t max_size(size_t a, size_t b) { return a > b ? a : b; }

static float *take_floats(frnn_arena *arena, size_t a, size_t b) { return frnn_arena_take(arena, a * b * sizeof(float)); }

static frnn_barrier take_barrier(frnn_arena *arena, size_t members)
{
    frnn_barrier barrier = {members, frnn_arena_take(arena, members * sizeof *barrier.slots)};
    if (barrier.slots) memset(barrier.slots, 0, members * sizeof *barrier.slots);
    return barrier;
}

static size_t sequence_count(const frnn_recurrent *net)
{
    if (net->directions == 1) return 0;
    size_t count = net->num_layers - 1 + (net->merge != FRNN_CONCAT);
    return count < 2 ? count : 2;
}

static void lay_out_group(frnn_arena *arena, const frnn_job *job, group *g)
{
    const frnn_recurrent *net = job->net;
    const size_t rows = job->plan.group_rows, chunk_rows = rows * job->plan.chunk_steps;
    int64_t *row = frnn_arena_take(arena, rows * sizeof *row), *length = frnn_arena_take(arena, rows * sizeof *length);
    float *inputs[2] = {take_floats(arena, chunk_rows, job->input_stride),
                        job->chain > 1 ? take_floats(arena, chunk_rows, job->input_stride) : NULL};
    float *gates = take_floats(arena, chunk_rows, job->gate_floats);
    float *recurrent = net->blas ? take_floats(arena, rows, job->gate_floats) : NULL;
    float *work = take_floats(arena, rows, job->stride), *z = take_floats(arena, rows, job->stride);
    state *states = frnn_arena_take(arena, job->chain * sizeof *states);
    const frnn_barrier barrier = take_barrier(arena, job->plan.members);
    if (g)
        *g = (group){.barrier = barrier,
                     .row = row,
                     .length = length,
                     .inputs = {inputs[0], inputs[1]},
                     .gates = gates,
                     .recurrent = recurrent,
                     .work = work,
                     .z = z,
                     .states = states};
    for (size_t layer = 0; layer < job->chain; layer++) {
        state s = {.h = {take_floats(arena, rows, job->stride), take_floats(arena, rows, job->stride)},
                   .c = take_floats(arena, rows, job->stride)};
        if (g) states[layer] = s;
    }
}

static size_t candidate_row(const frnn_direction *layer)
{
    return layer->candidate_input.w ? frnn_results_row(&layer->candidate_input) : 0;
}

frnn_job *frnn_job_lay_out(frnn_arena *arena, const frnn_recurrent *net, const frnn_recurrent_call *call, frnn_plan plan)
{
    const size_t padded = frnn_padded(&net->stack->hidden), features = net->directions * net->output_size;
    frnn_job local = {.net = net, .call = call, .plan = plan, .chain = net->directions == 1 ? net->num_layers : 1};
    local.stride = row_stride(max_size(padded, net->output_size + FRNN_MAX_WIDTH * net->kernels->vlen));
    local.input_stride = row_stride(max_size(net->input_size, net->num_layers > 1 ? features : 0));
    for (size_t k = 0; k < net->num_layers * net->directions; k++)
        local.gate_floats = max_size(local.gate_floats, frnn_results_row(&net->stack[k].input) + candidate_row(&net->stack[k]));
    const bool real = arena->block != NULL;
    local.all = take_barrier(arena, plan.groups * plan.members);
    frnn_job *job = frnn_arena_take(arena, sizeof *job);
    group *groups = frnn_arena_take(arena, plan.groups * sizeof *groups);
    for (size_t k = 0; k < plan.groups; k++) lay_out_group(arena, &local, real ? &groups[k] : NULL);
    for (size_t k = 0; k < sequence_count(net); k++) local.sequences[k] = take_floats(arena, call->batch * call->seq_len, features);
    if (!real) return NULL;
    local.groups = groups;
    *job = local;
    return job;
}

/* ---- Rows ---- */

/* Sift rows[root] down a heap with the shortest length on top. */
static void sift(int64_t *row, int64_t *length, size_t root, size_t n)
{
    for (size_t child; (child = 2 * root + 1) < n; root = child) {
        if (child + 1 < n && length[child + 1] < length[child]) child++;
        if (length[root] <= length[child]) return;
        int64_t r = row[root], l = length[root];
        row[root] = row[child], length[root] = length[child];
        row[child] = r, length[child] = l;
    }
}

/* In place and without allocation: longest first. */
static void sort_by_length(int64_t *row, int64_t *length, size_t n)
{
    for (size_t k = n / 2; k-- > 0;) sift(row, length, k, n);
    for (size_t k = n; k-- > 1;) {
        int64_t r = row[0], l = length[0];
        row[0] = row[k], length[0] = length[k];
        row[k] = r, length[k] = l;
        sift(row, length, 0, k);
    }
}

static void give_row(group *g, int64_t row, int64_t length)
{
    g->row[g->rows] = row;
    g->length[g->rows++] = length;
}

/* Rows of the slice in one of `parts` shares. */
static frnn_range share_of_slice(const frnn_job *job, size_t part, size_t parts)
{
    const frnn_range share = frnn_share(job->slice.end - job->slice.begin, part, parts);
    return (frnn_range){job->slice.begin + share.begin, job->slice.begin + share.end};
}

/* Groups that split the batch take neighbouring rows; ragged ones are dealt in turn, so that all run equally long. */
static void assign_rows(frnn_job *job)
{
    const frnn_recurrent_call *call = job->call;
    const size_t parts = job->plan.split == FRNN_SPLIT_BATCH ? job->plan.groups : 1;
    for (size_t k = 0; k < job->plan.groups; k++) {
        group *g = &job->groups[k];
        const bool by_direction = job->plan.split == FRNN_SPLIT_DIRECTIONS;
        g->first_direction = by_direction ? k : 0;
        g->end_direction = by_direction ? k + 1 : job->net->directions;
        g->members = job->plan.members;
        const size_t part = k % parts;
        const frnn_range share = share_of_slice(job, part, parts);
        g->rows = 0;
        if (call->lengths)
            for (size_t b = job->slice.begin + part; b < job->slice.end; b += parts) give_row(g, (int64_t)b, call->lengths[b]);
        else
            for (size_t b = share.begin; b < share.end; b++) give_row(g, (int64_t)b, (int64_t)call->seq_len);
        if (call->lengths) sort_by_length(g->row, g->length, g->rows);
        g->steps = g->rows ? (size_t)g->length[0] : 0;
    }
}

/* How many rows run step s. */
static size_t running(const group *g, size_t s)
{
    if (g->rows == 0 || g->length[g->rows - 1] > (int64_t)s) return g->rows;
    size_t low = 0, high = g->rows; /* length[low - 1] > s >= length[high] */
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (g->length[middle] > (int64_t)s)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* ---- One direction of a chain of layers ---- */

typedef struct {
    frnn_job *job;
    group *g;
    size_t member, first_layer, direction;
    sequence in, out; /* out.at NULL: not wanted */
} pass;

static const frnn_direction *layer_of(const pass *p, size_t link)
{
    return &p->job->net->stack[(p->first_layer + link) * p->job->net->directions + p->direction];
}

static size_t state_index(const pass *p, size_t link) { return (p->first_layer + link) * p->job->net->directions + p->direction; }

/* Where step s of row r stands in an array. */
static float *locate(const pass *p, const sequence *array, size_t r, size_t s)
{
    const frnn_recurrent_call *call = p->job->call;
    const int64_t row = p->g->row[r];
    const bool reverse = p->job->net->reverse || p->direction == 1;
    int64_t t = reverse ? p->g->length[r] - 1 - (int64_t)s : (int64_t)s;
    if (call->times) t = call->times[row * (int64_t)call->seq_len + t];
    return (array->rows ? array->rows[row] + array->offset : array->at + row * array->batch) + t * array->time;
}

/* Where the states of a row stand in an array of states, (num_layers * directions, rows, size). */
static size_t state_row(const pass *p, size_t link, size_t r)
{
    const frnn_recurrent_call *call = p->job->call;
    const int64_t row = p->g->row[r];
    if (!call->state_rows) return state_index(p, link) * call->batch + (size_t)row;
    return state_index(p, link) * call->state_capacity + (size_t)call->state_rows[row];
}

static void load_rows(const pass *p, size_t link, float *to, const float *from, size_t size, frnn_range rows)
{
    const size_t stride = p->job->stride;
    for (size_t r = rows.begin; r < rows.end; r++) {
        if (from)
            memcpy(to + r * stride, from + state_row(p, link, r) * size, size * sizeof(float));
        else
            memset(to + r * stride, 0, size * sizeof(float));
        memset(to + r * stride + size, 0, (stride - size) * sizeof(float));
    }
}

static void begin_states(const pass *p)
{
    const frnn_recurrent *net = p->job->net;
    const frnn_recurrent_call *call = p->job->call;
    const frnn_range rows = frnn_share(p->g->rows, p->member, p->g->members);
    for (size_t link = 0; link < p->job->chain; link++) {
        load_rows(p, link, p->g->states[link].h[0], call->h_0, net->output_size, rows);
        load_rows(p, link, p->g->states[link].c, call->c_0, net->hidden_size, rows);
    }
}

/* Rows [begin, end) have run their last step: their states go out. */
static void finish_rows(const pass *p, size_t link, const float *h, size_t begin, size_t end)
{
    const frnn_recurrent *net = p->job->net;
    const frnn_recurrent_call *call = p->job->call;
    const frnn_range rows = frnn_share(end - begin, p->member, p->g->members);
    for (size_t r = begin + rows.begin; r < begin + rows.end; r++) {
        const size_t row = state_row(p, link, r), at = r * p->job->stride;
        if (call->h_n) memcpy(call->h_n + row * net->output_size, h + at, net->output_size * sizeof(float));
        if (call->c_n) memcpy(call->c_n + row * net->hidden_size, p->g->states[link].c + at, net->hidden_size * sizeof(float));
    }
}

/* Rows of a matrix. */
typedef struct {
    const float *at;
    size_t stride, count;
} matrix_rows;

/* The input rows of steps [begin, end), one after another: where they are if they lie so, else a copy.  Rows a power of
 * two apart are copied too, as they would fall into the same cache sets. */
static matrix_rows gather(const pass *p, size_t begin, size_t end)
{
    enum { COLLIDING_STRIDE = 512 };
    const size_t size = layer_of(p, 0)->input.k;
    const frnn_recurrent_call *call = p->job->call;
    const bool one_step = call->seq_len == 1 && !call->lengths,
               one_row = call->batch == 1 && !call->times && !p->job->net->reverse && p->direction == 0;
    const ptrdiff_t stride = one_step ? p->in.batch : p->in.time;
    if (!p->in.rows && (one_step || one_row) && stride > 0 && stride < COLLIDING_STRIDE)
        return (matrix_rows){locate(p, &p->in, 0, begin), (size_t)stride, one_step ? p->g->rows : end - begin};
    size_t count = 0;
    for (size_t s = begin; s < end; s++) {
        const size_t rows = running(p->g, s);
        const frnn_range share = frnn_share(rows, p->member, p->g->members);
        for (size_t r = share.begin; r < share.end; r++)
            memcpy(p->g->inputs[0] + (count + r) * p->job->input_stride, locate(p, &p->in, r, s), size * sizeof(float));
        count += rows;
    }
    return (matrix_rows){p->g->inputs[0], p->job->input_stride, count};
}

/* This member's share of bias + W_ih a; where it begins. */
static frnn_totals input_product(const pass *p, const frnn_panels *matrix, matrix_rows a, float *out)
{
    const frnn_recurrent *net = p->job->net;
    const size_t row = frnn_panel_row(matrix);
    const frnn_range share = frnn_share(matrix->count, p->member, p->g->members);
    const frnn_totals totals =
        net->blas ? (frnn_totals){out, row, matrix->gates * frnn_padded(matrix)} : (frnn_totals){out, a.count * row, row};
    frnn_product_args args = {.panels = matrix,
                              .a = a.at,
                              .a_stride = a.stride,
                              .rows = a.count,
                              .panel_begin = share.begin,
                              .panel_end = share.end,
                              .out = totals};
    frnn_product(net->kernels, net->blas, &args);
    return totals;
}

/* This member's columns of the new h go where the next layer or the caller reads them. */
static void emit(const pass *p, const frnn_direction *layer, const float *h, size_t s, size_t rows, float *next)
{
    const frnn_panels *matrix = frnn_output_panels(layer);
    const frnn_range share = frnn_share(matrix->count, p->member, p->g->members);
    const size_t columns = matrix->width * matrix->vlen, begin = share.begin * columns;
    const size_t end = share.end * columns < matrix->units ? share.end * columns : matrix->units;
    if (begin >= end) return;
    for (size_t r = 0; r < rows; r++) {
        float *to = next ? next + r * p->job->input_stride : locate(p, &p->out, r, s);
        memcpy(to + begin, h + r * p->job->stride + begin, (end - begin) * sizeof(float));
    }
}

/* What other members wrote comes from their caches: all lines at once, not one wait after another. */
static void fetch_state(const pass *p, const float *h, size_t rows)
{
    enum { LINE = 64, FEW_BYTES = 8192 };
    const size_t size = p->job->net->output_size * sizeof(float);
    if (rows * size > FEW_BYTES) return;
    for (size_t r = 0; r < rows; r++)
        for (size_t at = 0; at < size; at += LINE) __builtin_prefetch((const char *)(h + r * p->job->stride) + at);
}

/* Steps [begin, end) of one layer. */
static void run_layer_chunk(const pass *p, size_t link, size_t begin, size_t end, matrix_rows first)
{
    const frnn_job *job = p->job;
    group *g = p->g;
    const frnn_direction *layer = layer_of(p, link);
    const matrix_rows a = link ? (matrix_rows){g->inputs[link % 2], job->input_stride, first.count} : first;
    float *next = link + 1 < job->chain ? g->inputs[(link + 1) % 2] : NULL;
    state *s = &g->states[link];
    frnn_step step = {.kernels = job->net->kernels,
                      .c = s->c,
                      .recurrent = g->recurrent,
                      .work = g->work,
                      .z = g->z,
                      .h_stride = job->stride,
                      .stride = job->stride,
                      .member = p->member,
                      .members = g->members,
                      .barrier = &g->barrier};
    step.input = input_product(p, &layer->input, a, g->gates);
    if (layer->candidate_input.w)
        step.candidate_input = input_product(p, &layer->candidate_input, a, g->gates + a.count * frnn_results_row(&layer->input));
    size_t before = begin ? running(g, begin - 1) : g->rows;
    for (size_t at = begin; at < end; at++) {
        step.rows = running(g, at);
        step.h = s->h[at % 2];
        step.h_next = s->h[(at + 1) % 2];
        step.backwards = at % 2;
        if (step.rows < before) finish_rows(p, link, step.h, step.rows, before);
        before = step.rows;
        job->net->ops->step(layer, &step);
        if (next) emit(p, layer, step.h_next, at, step.rows, next);
        frnn_barrier_arrive(&g->barrier, p->member);
        if (!next && p->out.at) emit(p, layer, step.h_next, at, step.rows, NULL); /* no other member reads y */
        frnn_barrier_leave(&g->barrier, p->member);
        if (g->members > 1 && at + 1 < end) fetch_state(p, step.h_next, step.rows);
        step.input.at += step.rows * step.input.row_stride;
        step.candidate_input.at += step.rows * step.candidate_input.row_stride;
        if (next) next += step.rows * job->input_stride;
    }
}

static bool stopped(const pass *p, bool polls)
{
    frnn_job *job = p->job;
    if (polls && frnn_poll_stops(&job->poll)) atomic_store(&job->stop, true);
    return atomic_load_explicit(&job->stop, memory_order_relaxed);
}

/* All steps of `chain` layers in one direction.  `polls`: this is the calling thread. */
static void run_pass(const pass *p, bool polls)
{
    group *g = p->g;
    begin_states(p);
    for (size_t begin = 0, end; begin < g->steps; begin = end) {
        end = begin + p->job->plan.chunk_steps < g->steps ? begin + p->job->plan.chunk_steps : g->steps;
        if (p->member == 0) g->stop = stopped(p, polls);
        const matrix_rows first = gather(p, begin, end);
        frnn_barrier_wait(&g->barrier, p->member);
        if (g->stop) return;
        for (size_t link = 0; link < p->job->chain; link++) run_layer_chunk(p, link, begin, end, first);
    }
    if (g->steps == 0) frnn_barrier_wait(&g->barrier, p->member);
    for (size_t link = 0; link < p->job->chain; link++)
        finish_rows(p, link, g->states[link].h[g->steps % 2], 0, g->steps ? running(g, g->steps - 1) : g->rows);
    frnn_barrier_wait(&g->barrier, p->member); /* before the states are used again */
}

/* ---- What is left of y ---- */

/* Steps that were not run, in one direction's columns of row r: zeros, or the output before them in running order. */
static void pad_row(const pass *p, const sequence *y, size_t r, size_t size)
{
    const frnn_recurrent_call *call = p->job->call;
    const int64_t row = p->g->row[r], length = p->g->length[r], seq_len = (int64_t)call->seq_len;
    const int64_t *times = call->times ? call->times + row * seq_len : NULL;
    const int64_t back = p->job->net->reverse || p->direction == 1 ? 1 : -1;
    for (int64_t k = 0; k < seq_len - length; k++) {
        const int64_t index = back < 0 ? length + k : seq_len - 1 - k, t = times ? times[index] : index;
        float *to = y->at + row * y->batch + t * y->time;
        if (call->padding == FRNN_PAD_REPEAT && t + back >= 0 && t + back < seq_len)
            memcpy(to, to + back * y->time, size * sizeof(float));
        else
            memset(to, 0, size * sizeof(float));
    }
}

static void pad(const pass *p)
{
    if (!p->job->call->lengths || !p->out.at || p->out.rows) return;
    const frnn_range rows = frnn_share(p->g->rows, p->member, p->g->members);
    for (size_t r = rows.begin; r < rows.end; r++) pad_row(p, &p->out, r, p->job->net->output_size);
}

static float merged(frnn_merge merge, float forward, float backward)
{
    switch (merge) {
    case FRNN_SUM: return forward + backward;
    case FRNN_MUL: return forward * backward;
    case FRNN_AVE: return (forward + backward) * 0.5f;
    case FRNN_CONCAT: break;
    }
    return forward;
}

/* y = merge(both halves of each step), for the rows of the batch in this member's share. */
static void merge_directions(const frnn_job *job, const float *both, frnn_range rows)
{
    const frnn_recurrent_call *call = job->call;
    const size_t size = job->net->output_size;
    for (size_t b = rows.begin; b < rows.end; b++)
        for (size_t t = 0; t < call->seq_len; t++) {
            const float *from = both + (b * call->seq_len + t) * 2 * size;
            float *to = call->y + (ptrdiff_t)b * call->y_batch_stride + (ptrdiff_t)t * call->y_time_stride;
            for (size_t j = 0; j < size; j++) to[j] = merged(job->net->merge, from[j], from[size + j]);
        }
}

/* ---- The call ---- */

static void run_member(void *arg, size_t thread)
{
    frnn_job *job = arg;
    const frnn_recurrent *net = job->net;
    const frnn_recurrent_call *call = job->call;
    const frnn_float_mode mode = frnn_float_mode_set();
    if (thread == 0) job->poll.ask = call->poll, job->poll.arg = call->poll_arg, job->poll.callers_mode = mode;
    group *g = &job->groups[thread / job->plan.members];
    const sequence x = {(float *)call->x, call->x_batch_stride, call->x_time_stride, (float *const *)call->x_rows, 0};
    const sequence y = {call->y, call->y_batch_stride, call->y_time_stride, call->y_rows, 0};
    const ptrdiff_t features = (ptrdiff_t)(net->directions * net->output_size);
    const bool merges = net->directions == 2 && net->merge != FRNN_CONCAT && call->y;
    pass p = {.job = job, .g = g, .member = thread % job->plan.members, .in = x};
    for (size_t layer = 0; layer < net->num_layers; layer += job->chain) {
        const bool last = layer + job->chain == net->num_layers;
        const sequence between = {job->sequences[layer / job->chain % 2], (ptrdiff_t)call->seq_len * features, features, NULL, 0};
        const sequence out = last && !merges ? y : between;
        p.first_layer = layer;
        for (p.direction = g->first_direction; p.direction < g->end_direction; p.direction++) {
            p.out = out;
            if (out.at) p.out.at += p.direction * net->output_size, p.out.offset = p.direction * net->output_size;
            run_pass(&p, thread == 0);
            if (last) pad(&p);
        }
        frnn_barrier_wait(&job->all, thread);
        p.in = out;
    }
    if (merges) merge_directions(job, p.in.at, share_of_slice(job, thread, job->plan.groups * job->plan.members));
    frnn_float_mode_restore(mode);
}

bool frnn_job_run(frnn_job *job)
{
    size_t begin = 0;
    do {
        const size_t left = job->call->batch - begin;
        job->slice = (frnn_range){begin, begin + (left < job->plan.slice_rows ? left : job->plan.slice_rows)};
        assign_rows(job);
        frnn_team_run(job->plan.groups * job->plan.members, run_member, job);
        begin = job->slice.end;
    } while (begin < job->call->batch && !job->stop);
    return !job->stop;
}
