/* bits.c: the C library without Python, on fixed weights and inputs, so that two builds of it can be compared.
 *
 *     bits isas            names of the instruction sets, best first
 *     bits layers ISA      a line for each call: its results in hexadecimal
 *     bits calls ISA       a line for each of many random calls of random layers: hashes of its results, which must be those
 *                          of other ways to make the same call
 *     bits rows ISA        a line for each length of rows: hashes of the results of dense layers and functions of rows
 *     bits threads ISA     every split on two threads against one thread, several callers, calls that are stopped
 *
 * Exit code 1: the way to call changed a result.  2: wrong usage, or no such instruction set. */
#include <pthread.h>

#include "bits.h"
#include "fastrnn.h"

static void print_floats(const char *name, const float *x, size_t n)
{
    printf(" %s", name);
    for (size_t k = 0; k < n; k++) printf(" %" PRIx32, canonical_bits(x[k]));
}

/* ---- Layers ---- */

typedef struct {
    const char *name;
    frnn_cell_kind cell;
    size_t gates, layers, directions;
    frnn_merge merge;
    bool reverse, projection, peephole, coupled, clips, reset_before, other_activations;
} variant;

static const variant variants[] = {
    {"lstm", FRNN_LSTM, 4, 1, 1, .reverse = false},
    {"lstm two layers both ways", FRNN_LSTM, 4, 2, 2, .merge = FRNN_CONCAT},
    {"lstm projection", FRNN_LSTM, 4, 2, 1, .projection = true},
    {"lstm peephole", FRNN_LSTM, 4, 1, 1, .peephole = true},
    {"lstm everything", FRNN_LSTM, 4, 1, 2, .merge = FRNN_AVE, .projection = true, .peephole = true, .coupled = true, .clips = true},
    {"lstm other activations", FRNN_LSTM, 4, 1, 1, .reverse = true, .other_activations = true},
    {"gru", FRNN_GRU, 3, 1, 1, .reverse = false},
    {"gru three layers", FRNN_GRU, 3, 3, 1, .reverse = true},
    {"gru both ways", FRNN_GRU, 3, 1, 2, .merge = FRNN_MUL},
    {"gru reset before", FRNN_GRU, 3, 1, 1, .reset_before = true},
    {"gru reset before both ways", FRNN_GRU, 3, 2, 2, .merge = FRNN_SUM, .reset_before = true, .clips = true},
    {"rnn", FRNN_RNN, 1, 1, 1, .reverse = false},
    {"rnn other activations", FRNN_RNN, 1, 2, 2, .other_activations = true, .clips = true},
};
enum { VARIANTS = sizeof variants / sizeof *variants, MAX_STACK = 6 };

static frnn_recurrent *create(const variant *v, size_t input_size, size_t hidden_size)
{
    const size_t rows = v->gates * hidden_size, output_size = v->projection ? (hidden_size + 1) / 2 : hidden_size;
    const frnn_activation sigmoid = {FRNN_SIGMOID, 0, 0}, tanh = {FRNN_TANH, 0, 0};
    frnn_recurrent_weights weights[MAX_STACK] = {{0}};
    const size_t stack = v->layers * v->directions;
    for (size_t k = 0; k < stack; k++) {
        const size_t inputs = k < v->directions ? input_size : v->directions * output_size;
        weights[k] = (frnn_recurrent_weights){
            .weight_ih = random_floats(rows * inputs, 1.5f / sqrtf((float)inputs)),
            .weight_hh = random_floats(rows * output_size, 1.5f / sqrtf((float)output_size)),
            .bias_ih = random_floats(rows, 0.5f),
            .bias_hh = random_floats(rows, 0.5f),
            .weight_hr = v->projection ? random_floats(output_size * hidden_size, 1.5f / sqrtf((float)hidden_size)) : NULL,
            .peephole = v->peephole ? random_floats(3 * hidden_size, 0.5f) : NULL,
        };
    }
    const frnn_recurrent_desc desc = {
        .cell = v->cell,
        .input_size = input_size,
        .hidden_size = hidden_size,
        .proj_size = v->projection ? output_size : 0,
        .num_layers = v->layers,
        .directions = v->directions,
        .reverse = v->reverse,
        .merge = v->merge,
        .gate = v->other_activations ? (frnn_activation){FRNN_HARD_SIGMOID, 0.2f, 0.5f} : sigmoid,
        .candidate = v->other_activations ? (frnn_activation){FRNN_ELU, 1.0f, 0} : tanh,
        .hidden = v->other_activations ? (frnn_activation){FRNN_SOFTSIGN, 0, 0} : tanh,
        .clip = v->clips ? 0.75f : INFINITY,
        .cell_clip = v->clips ? 0.5f : INFINITY,
        .proj_clip = v->clips ? 0.25f : INFINITY,
        .coupled_input_forget = v->coupled,
        .reset_before = v->reset_before,
        .weights = weights,
    };
    frnn_recurrent *net;
    if (frnn_recurrent_create(&net, &desc) != FRNN_OK) fail("cannot create", v->name);
    for (size_t k = 0; k < stack; k++) {
        const frnn_recurrent_weights *w = &weights[k];
        const float *arrays[] = {w->weight_ih, w->weight_hh, w->bias_ih, w->bias_hh, w->weight_hr, w->peephole};
        for (size_t a = 0; a < sizeof arrays / sizeof *arrays; a++) free((float *)arrays[a]);
    }
    return net;
}

/* A call with memory of its own. */
typedef struct {
    const variant *v;
    frnn_recurrent_call call;
    float *x, *h_0, *c_0;
    int64_t *lengths;
    size_t y_size, h_size, c_size;
} example;

static example new_example(const variant *v, size_t input_size, size_t hidden_size, size_t batch, size_t seq_len, bool ragged)
{
    const size_t output_size = v->projection ? (hidden_size + 1) / 2 : hidden_size, stack = v->layers * v->directions;
    const size_t features = output_size * (v->directions == 2 && v->merge == FRNN_CONCAT ? 2 : 1);
    example e = {
        .v = v, .y_size = batch * seq_len * features, .h_size = stack * batch * output_size, .c_size = stack * batch * hidden_size};
    e.x = random_floats(batch * seq_len * input_size, 2.0f);
    e.h_0 = random_floats(e.h_size, 1.0f);
    e.c_0 = random_floats(e.c_size, 1.0f);
    e.lengths = calloc(batch, sizeof *e.lengths);
    if (!e.lengths) fail("out of", "memory");
    for (size_t b = 0; b < batch; b++) e.lengths[b] = (int64_t)((b * 3 + 1) % (seq_len + 1));
    e.call = (frnn_recurrent_call){
        .batch = batch,
        .seq_len = seq_len,
        .x = e.x,
        .x_batch_stride = (ptrdiff_t)(seq_len * input_size),
        .x_time_stride = (ptrdiff_t)input_size,
        .y = new_floats(e.y_size),
        .y_batch_stride = (ptrdiff_t)(seq_len * features),
        .y_time_stride = (ptrdiff_t)features,
        .h_0 = e.h_0,
        .c_0 = e.c_0,
        .h_n = new_floats(e.h_size),
        .c_n = new_floats(e.c_size),
        .lengths = ragged ? e.lengths : NULL,
        .threads = 1,
    };
    return e;
}

static void free_example(example *e)
{
    free(e->call.y), free(e->call.h_n), free(e->call.c_n);
    free(e->x), free(e->h_0), free(e->c_0), free(e->lengths);
}

static bool forward(const frnn_recurrent *net, const frnn_recurrent_call *call)
{
    const size_t bytes = frnn_recurrent_scratch(net, call);
    void *scratch = new_scratch(bytes);
    const bool finished = frnn_recurrent_forward(net, call, scratch);
    free_scratch(scratch, bytes);
    return finished;
}

static void print_layers(void)
{
    static const size_t sizes[] = {1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 100, 127, 128, 129, 255, 256, 257};
    enum { SIZES = sizeof sizes / sizeof *sizes };
    for (size_t k = 0; k < SIZES; k++)
        for (size_t which = 0; which < VARIANTS; which++) {
            const variant *v = &variants[which];
            const size_t hidden_size = sizes[k], input_size = sizes[SIZES - 1 - k];
            const size_t batch = 1 + (k + which) % (hidden_size < 100 ? 9 : 3), seq_len = 3;
            const bool ragged = (k + which) % 2;
            seed = (uint32_t)(k * VARIANTS + which);
            frnn_recurrent *net = create(v, input_size, hidden_size);
            example e = new_example(v, input_size, hidden_size, batch, seq_len, ragged);
            forward(net, &e.call);
            printf("%s, input %zu, hidden %zu, batch %zu%s:", v->name, input_size, hidden_size, batch, ragged ? ", ragged" : "");
            print_floats("y", e.call.y, e.y_size);
            print_floats("h", e.call.h_n, e.h_size);
            if (v->cell == FRNN_LSTM) print_floats("c", e.call.c_n, e.c_size);
            printf("\n");
            free_example(&e);
            frnn_recurrent_free(net);
        }
}

/* ---- Random calls of random layers ---- */

static bool one_in(size_t n) { return next_below(n) == 0; }

static variant random_variant(void)
{
    static const size_t gates[] = {[FRNN_LSTM] = 4, [FRNN_GRU] = 3, [FRNN_RNN] = 1};
    variant v = {.name = "random", .cell = (frnn_cell_kind)next_below(3)};
    v.gates = gates[v.cell];
    v.layers = 1 + next_below(3);
    v.directions = one_in(3) ? 2 : 1;
    v.merge = (frnn_merge)next_below(4);
    v.reverse = v.directions == 1 && one_in(4);
    v.projection = v.cell == FRNN_LSTM && one_in(3);
    v.peephole = v.cell == FRNN_LSTM && one_in(3);
    v.coupled = v.cell == FRNN_LSTM && one_in(4);
    v.clips = one_in(4);
    v.reset_before = v.cell == FRNN_GRU && one_in(2);
    v.other_activations = one_in(4);
    return v;
}

/* Of one layer's states in one direction. */
static float *state_row(float *states, size_t size, const example *e, size_t layer, size_t row)
{
    const size_t rows = e->v->layers * e->v->directions * e->call.batch;
    return states + (layer * e->call.batch + row) * (size / rows);
}

static size_t state_bytes(size_t size, const example *e)
{
    return size / (e->v->layers * e->v->directions * e->call.batch) * sizeof(float);
}

static void copy_row(const example *from, size_t a, const example *to, size_t b)
{
    const ptrdiff_t stride = from->call.x_batch_stride;
    memcpy(to->x + (ptrdiff_t)b * stride, from->x + (ptrdiff_t)a * stride, (size_t)stride * sizeof(float));
    to->lengths[b] = from->lengths[a];
    for (size_t k = 0; k < from->v->layers * from->v->directions; k++) {
        memcpy(state_row(to->h_0, to->h_size, to, k, b), state_row(from->h_0, from->h_size, from, k, a), state_bytes(from->h_size, from));
        memcpy(state_row(to->c_0, to->c_size, to, k, b), state_row(from->c_0, from->c_size, from, k, a), state_bytes(from->c_size, from));
    }
}

static bool same_row(const example *one, size_t a, const example *other, size_t b)
{
    const frnn_recurrent_call *p = &one->call, *q = &other->call;
    const ptrdiff_t stride = p->y_batch_stride;
    bool agree = memcmp(p->y + (ptrdiff_t)a * stride, q->y + (ptrdiff_t)b * stride, (size_t)stride * sizeof(float)) == 0;
    for (size_t k = 0; k < one->v->layers * one->v->directions; k++) {
        const float *h = state_row(p->h_n, one->h_size, one, k, a), *c = state_row(p->c_n, one->c_size, one, k, a);
        agree &= memcmp(h, state_row(q->h_n, other->h_size, other, k, b), state_bytes(one->h_size, one)) == 0;
        agree &= one->v->cell != FRNN_LSTM || memcmp(c, state_row(q->c_n, other->c_size, other, k, b), state_bytes(one->c_size, one)) == 0;
    }
    return agree;
}

static bool same(const example *a, const example *b)
{
    return memcmp(a->call.y, b->call.y, a->y_size * sizeof(float)) == 0 &&
           memcmp(a->call.h_n, b->call.h_n, a->h_size * sizeof(float)) == 0 &&
           (a->v->cell != FRNN_LSTM || memcmp(a->call.c_n, b->call.c_n, a->c_size * sizeof(float)) == 0);
}

/* Run one row of a call in another batch, on several threads, where the other rows are NaN and have other lengths. */
static bool row_agrees(const frnn_recurrent *net, const example *e, size_t input_size, size_t hidden_size, size_t batch)
{
    const size_t row = next_below(e->call.batch), place = next_below(batch);
    example other = new_example(e->v, input_size, hidden_size, batch, e->call.seq_len, e->call.lengths != NULL);
    for (size_t k = 0; k < batch * e->call.seq_len * input_size; k++) other.x[k] = NAN;
    for (size_t k = 0; k < other.h_size; k++) other.h_0[k] = NAN;
    for (size_t k = 0; k < other.c_size; k++) other.c_0[k] = NAN;
    for (size_t b = 0; b < batch; b++) other.lengths[b] = (int64_t)next_below(e->call.seq_len + 1);
    copy_row(e, row, &other, place);
    other.call.threads = 1 + next_below(4);
    forward(net, &other.call);
    const bool agree = same_row(e, row, &other, place);
    free_example(&other);
    return agree;
}

/* Run a call again on several threads, and in two parts where time goes forward. */
static bool parts_agree(const frnn_recurrent *net, const example *e, size_t input_size, size_t hidden_size)
{
    const frnn_recurrent_call *whole = &e->call;
    example again = new_example(e->v, input_size, hidden_size, whole->batch, whole->seq_len, whole->lengths != NULL);
    for (size_t b = 0; b < whole->batch; b++) copy_row(e, b, &again, b);
    frnn_recurrent_call *call = &again.call;
    call->threads = 1 + next_below(4);
    if (e->v->directions == 1 && !e->v->reverse) {
        const size_t cut = next_below(whole->seq_len + 1);
        frnn_recurrent_call first = *call;
        first.seq_len = cut;
        for (size_t b = 0; b < whole->batch; b++) again.lengths[b] = e->lengths[b] < (int64_t)cut ? e->lengths[b] : (int64_t)cut;
        forward(net, &first);
        for (size_t b = 0; b < whole->batch; b++) again.lengths[b] = e->lengths[b] - again.lengths[b];
        frnn_recurrent_call rest = *call;
        rest.seq_len -= cut;
        rest.x += (ptrdiff_t)cut * rest.x_time_stride;
        rest.y += (ptrdiff_t)cut * rest.y_time_stride;
        rest.h_0 = rest.h_n, rest.c_0 = rest.c_n;
        forward(net, &rest);
    } else
        forward(net, call);
    const bool agree = same(e, &again);
    free_example(&again);
    return agree;
}

static bool print_calls(void)
{
    enum { CALLS = 100 };
    bool agree = true;
    for (uint32_t k = 0; k < CALLS; k++) {
        seed = k;
        const variant v = random_variant();
        const bool large = k % 4 == 0, ragged = one_in(2); /* large: many tiles, several blocks of 128 */
        const size_t input_size = 1 + next_below(large ? 300 : 60), hidden_size = 1 + next_below(large ? 200 : 60);
        const size_t batch = 1 + next_below(40), seq_len = next_below(large ? 5 : 31);
        frnn_recurrent *net = create(&v, input_size, hidden_size);
        example e = new_example(&v, input_size, hidden_size, batch, seq_len, ragged);
        forward(net, &e.call);
        printf("call %" PRIu32 ", input %zu, hidden %zu, batch %zu, steps %zu:", k, input_size, hidden_size, batch, seq_len);
        print_hash(e.call.y, e.y_size), print_hash(e.call.h_n, e.h_size), print_hash(e.call.c_n, e.c_size);
        printf("\n");
        if (!row_agrees(net, &e, input_size, hidden_size, 1) || !row_agrees(net, &e, input_size, hidden_size, 1 + next_below(40)) ||
            !parts_agree(net, &e, input_size, hidden_size)) {
            fprintf(stderr, "bits: another way to make call %" PRIu32 " has other results\n", k);
            agree = false;
        }
        free_example(&e);
        frnn_recurrent_free(net);
    }
    return agree;
}

/* ---- Rows ---- */

static void print_rows(void)
{
    const frnn_kernels *kernels = frnn_kernels_selected();
    for (size_t n = 1; n < 70; n += 3) {
        float *rows = random_floats(5 * n, 20.0f), *weight = random_floats(n, 1.0f), *bias = random_floats(n, 1.0f),
              *out = new_floats(5 * n);
        printf("rows of %zu:", n);
        frnn_softmax(kernels, 5, n, rows, out, false), print_hash(out, 5 * n);
        frnn_softmax(kernels, 5, n, rows, out, true), print_hash(out, 5 * n);
        frnn_layer_norm(kernels, 5, n, rows, weight, bias, 1e-5f, out), print_hash(out, 5 * n);
        frnn_scale_shift(kernels, 5, n, rows, weight, bias, out), print_hash(out, 5 * n);
        frnn_dense *dense;
        float *matrix = random_floats(7 * n, 1.0f), *result = new_floats(5 * 7);
        if (frnn_dense_create(&dense, n, 7, matrix, NULL, (frnn_activation){FRNN_TANH, 0, 0}, FRNN_BACKEND_PACKED) != FRNN_OK)
            fail("cannot create", "dense");
        frnn_dense_forward(dense, 5, rows, (ptrdiff_t)n, result, 7, 1, frnn_scratch(frnn_dense_scratch(dense, 5, 1)), NULL, NULL);
        print_hash(result, 5 * 7);
        printf("\n");
        frnn_dense_free(dense);
        free(rows), free(weight), free(bias), free(out), free(matrix), free(result);
    }
}

/* ---- Threads ---- */

static bool stop_at_once(void *arg)
{
    (void)arg;
    return true;
}

typedef struct {
    const frnn_recurrent *net;
    example e;
} caller;

static void *call_twice(void *packed)
{
    const caller *c = packed;
    for (int turn = 0; turn < 2; turn++) forward(c->net, &c->e.call);
    return NULL;
}

/* Three callers at once, of whom one gets the team, must all have what one thread gives. */
static bool splits_agree(const variant *v, const char *split, size_t hidden_size, size_t batch, size_t seq_len, bool ragged)
{
    enum { CALLERS = 3, INPUT_SIZE = 40 };
    seed = (uint32_t)hidden_size;
    frnn_recurrent *net = create(v, INPUT_SIZE, hidden_size);
    caller callers[CALLERS];
    pthread_t threads[CALLERS];
    const uint32_t begin = seed;
    example alone = new_example(v, INPUT_SIZE, hidden_size, batch, seq_len, ragged);
    forward(net, &alone.call);
    for (size_t k = 0; k < CALLERS; k++) {
        seed = begin;
        callers[k] = (caller){net, new_example(v, INPUT_SIZE, hidden_size, batch, seq_len, ragged)};
        callers[k].e.call.threads = 2;
        if (strcmp(frnn_recurrent_explain(net, &callers[k].e.call).split, split) != 0) fail(v->name, "is not split as it should be");
    }
    for (size_t k = 0; k < CALLERS; k++)
        if (pthread_create(&threads[k], NULL, call_twice, &callers[k])) fail("cannot start", "a thread");
    bool agree = true;
    for (size_t k = 0; k < CALLERS; k++) {
        pthread_join(threads[k], NULL);
        if (!same(&alone, &callers[k].e)) {
            fprintf(stderr, "bits: %s: other results on two threads, split %s, batch %zu\n", v->name, split, batch);
            agree = false;
        }
    }
    callers[0].e.call.poll = stop_at_once;
    call_twice(&callers[0]);
    for (size_t k = 0; k < CALLERS; k++) free_example(&callers[k].e);
    free_example(&alone);
    frnn_recurrent_free(net);
    return agree;
}

static bool threads_agree(void)
{
    bool agree = true;
    for (size_t which = 0; which < VARIANTS; which++) {
        const variant *v = &variants[which];
        const bool ragged = which % 2;
        agree &= splits_agree(v, "batch", 64, 9, 4 + 20 / v->gates, ragged);
        agree &= v->directions == 2 ? splits_agree(v, "directions", 64, 3, 4 + 24 / v->gates, !ragged)
                                    : splits_agree(v, "hidden", 256, 3, 3 + 4 / v->gates, !ragged);
    }
    return agree;
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    if (strcmp(what, "isas") == 0) {
        for (size_t k = 0; k < frnn_isa_count(); k++) printf("%s\n", frnn_isa_name(k));
        return 0;
    }
    if (argc != 3) fail("usage:", "bits isas | bits layers|calls|rows|threads ISA");
    if (frnn_set_isa(argv[2]) != FRNN_OK) fail("no instruction set", argv[2]);
    if (strcmp(what, "threads") == 0) return threads_agree() ? 0 : 1;
    if (strcmp(what, "calls") == 0) return print_calls() ? 0 : 1;
    if (strcmp(what, "layers") == 0)
        print_layers();
    else if (strcmp(what, "rows") == 0)
        print_rows();
    else
        fail("cannot do", what);
    return 0;
}
