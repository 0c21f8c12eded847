/* bits.c: the C library without Python, on fixed weights and inputs, so that two builds of it can be compared.
 *
 *     bits isas            names of the instruction sets, best first
 *     bits layers ISA      a line for each call: its results in hexadecimal
 *     bits functions ISA   a line for each function: hashes of its results over the range of float
 *     bits threads ISA     every split on two threads against one thread, several callers, calls that are stopped
 *
 * Exit code 1: threads changed a result.  2: wrong usage, or no such instruction set.
 * Magnitudes up to FLT_MIN print as 0 (ARM flushes before it rounds, x86 after), and all NaN alike. */
#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fastrnn.h"

static void fail(const char *message, const char *what)
{
    fprintf(stderr, "bits: %s %s\n", message, what);
    exit(2);
}

/* ---- Numbers ---- */

static uint32_t seed;

/* In [-1, 1), by a linear congruence. */
static float next_float(void)
{
    seed = seed * 1664525u + 1013904223u;
    return (float)(seed >> 8) * 0x1p-23f - 1.0f;
}

static float *new_floats(size_t n)
{
    float *floats = calloc(n ? n : 1, sizeof *floats);
    if (!floats) fail("out of", "memory");
    return floats;
}

static float *random_floats(size_t n, float scale)
{
    float *floats = new_floats(n);
    for (size_t k = 0; k < n; k++) floats[k] = scale * next_float();
    return floats;
}

static uint32_t canonical_bits(float x)
{
    uint32_t bits;
    if (isnan(x)) return 0x7fc00000;
    if (fabsf(x) <= FLT_MIN) return 0;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

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
enum { VARIANTS = sizeof variants / sizeof *variants, MAX_STACK = 4 };

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
    void *scratch = frnn_scratch(frnn_recurrent_scratch(net, call));
    if (!scratch) fail("out of", "memory");
    return frnn_recurrent_forward(net, call, scratch);
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

/* ---- Functions ---- */

static void print_hash(const float *x, size_t n)
{
    uint64_t hash = 14695981039346656037u; /* FNV-1a */
    for (size_t k = 0; k < n; k++) hash = (hash ^ canonical_bits(x[k])) * 1099511628211u;
    printf(" %" PRIx64, hash);
}

static void print_functions(void)
{
    static const struct {
        const char *name;
        frnn_activation activation;
    } functions[] = {
        {"sigmoid", {FRNN_SIGMOID, 0, 0}},
        {"tanh", {FRNN_TANH, 0, 0}},
        {"exp", {FRNN_EXP, 0, 0}},
        {"hard_sigmoid", {FRNN_HARD_SIGMOID, 0.2f, 0.5f}},
        {"affine", {FRNN_AFFINE, 1.7f, 0.3f}},
        {"leaky_relu", {FRNN_LEAKY_RELU, 0.01f, 0}},
        {"thresholded_relu", {FRNN_THRESHOLDED_RELU, 0.5f, 0}},
        {"scaled_tanh", {FRNN_SCALED_TANH, 1.7f, 0.6f}},
        {"elu", {FRNN_ELU, 1.3f, 0}},
        {"softsign", {FRNN_SOFTSIGN, 0, 0}},
        {"softplus", {FRNN_SOFTPLUS, 0, 0}},
        {"selu", {FRNN_SELU, 1.67f, 1.05f}},
        {"silu", {FRNN_SILU, 0, 0}},
        {"gelu", {FRNN_GELU, 0, 0}},
        {"gelu_tanh", {FRNN_GELU_TANH, 0, 0}},
        {"mish", {FRNN_MISH, 0, 0}},
        {"relu6", {FRNN_RELU6, 0, 0}},
        {"hard_swish", {FRNN_HARD_SWISH, 0, 0}},
        {"log_sigmoid", {FRNN_LOG_SIGMOID, 0, 0}},
    };
    enum { BLOCK = 1001, STEP = 20011 }; /* odd, so that vectors end anywhere and all last bits are met */
    static float x[BLOCK], y[BLOCK];
    const frnn_kernels *kernels = frnn_kernels_selected();
    for (size_t f = 0; f < sizeof functions / sizeof *functions; f++) {
        printf("%s:", functions[f].name);
        for (uint64_t next = 0; next < (uint64_t)1 << 32;) {
            size_t n = 0;
            for (; n < BLOCK && next < (uint64_t)1 << 32; next += STEP) {
                const uint32_t bits = (uint32_t)next;
                memcpy(&x[n++], &bits, sizeof bits);
            }
            frnn_activate(kernels, functions[f].activation, n, x, y);
            print_hash(y, n);
        }
        printf("\n");
    }
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
        frnn_dense_forward(dense, 5, rows, result, 1, frnn_scratch(frnn_dense_scratch(dense, 5, 1)));
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

static bool same(const example *a, const example *b)
{
    return memcmp(a->call.y, b->call.y, a->y_size * sizeof(float)) == 0 &&
           memcmp(a->call.h_n, b->call.h_n, a->h_size * sizeof(float)) == 0 &&
           (a->v->cell != FRNN_LSTM || memcmp(a->call.c_n, b->call.c_n, a->c_size * sizeof(float)) == 0);
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
    if (argc != 3) fail("usage:", "bits isas | bits layers|functions|threads ISA");
    if (frnn_set_isa(argv[2]) != FRNN_OK) fail("no instruction set", argv[2]);
    if (strcmp(what, "threads") == 0) return threads_agree() ? 0 : 1;
    if (strcmp(what, "layers") == 0)
        print_layers();
    else if (strcmp(what, "functions") == 0)
        print_functions();
    else
        fail("cannot do", what);
    return 0;
}
