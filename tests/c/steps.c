/* steps.c: the steps of programs, one by one and as a whole, without Python, so that two builds can be compared.
 *
 *     steps isas           names of the instruction sets, best first
 *     steps elements ISA   a line for each length: hashes of the results of copies, operators of two arrays, activations and
 *                          reductions, in several strides
 *     steps program ISA    a line for each size of a small model: hashes of all tensors, which must be the same when its steps
 *                          run one at a time
 *
 * Exit code 1: the way to run changed a result.  2: wrong usage, or no such instruction set. */
#include "bits.h"
#include "fastrnn.h"

enum { MAX_STEPS = 32, SLOTS = 4 };
#define COUNT(array) (sizeof array / sizeof *array)

static const frnn_kernels *kernels;

static void run(const frnn_program_step *steps, size_t count, float *const *at, size_t threads)
{
    const size_t bytes = frnn_program_scratch(kernels, steps, count, threads);
    void *scratch = new_scratch(bytes);
    if (!frnn_program_run(kernels, steps, count, at, threads, scratch, NULL, NULL)) fail("a program was", "stopped");
    free_scratch(scratch, bytes);
}

static frnn_operand operand(int slot, ptrdiff_t offset) { return (frnn_operand){slot, offset}; }

#define NONE operand(FRNN_NO_SLOT, 0)

/* ---- Elements ---- */

enum { Y, A, B }; /* slots */

/* Where n elements that are `stride` apart begin, and the floats that they take. */
static ptrdiff_t first_of(size_t n, ptrdiff_t stride) { return stride < 0 ? (ptrdiff_t)(n - 1) * -stride : 0; }
static size_t span_of(size_t n, ptrdiff_t stride) { return (n - 1) * (size_t)(stride < 0 ? -stride : stride) + 1; }

/* Numbers of which some are not ordinary. */
static float *odd_floats(size_t n)
{
    static const float odd[] = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, 1e30f};
    float *floats = random_floats(n, 2.0f);
    for (size_t k = 0; k < n; k++)
        if (next_below(8) == 0) floats[k] = odd[next_below(COUNT(odd))];
    return floats;
}

/* Run one step over n elements in these strides. */
static void print_step(frnn_program_step step, size_t n, ptrdiff_t y, ptrdiff_t a, ptrdiff_t b)
{
    float *left = odd_floats(span_of(n, a)), *right = odd_floats(span_of(n, b));
    float *at[] = {new_floats(span_of(n, y)), left, right};
    step.y = operand(Y, first_of(n, y)), step.a = operand(A, first_of(n, a)), step.b = operand(B, first_of(n, b)), step.c = NONE;
    step.y_2 = step.y_3 = NONE;
    step.loops = (frnn_loops){.axes = 1, .size = {n}, .y = {y}, .a = {a}, .b = {b}};
    run(&step, 1, at, 1);
    print_hash(at[Y], span_of(n, y));
    for (size_t k = 0; k < COUNT(at); k++) free(at[k]);
}

static void print_reduction(frnn_reduction reduction, size_t n)
{
    enum { ROWS = 5 };
    float *at[] = {new_floats(ROWS), random_floats(ROWS * n, 2.0f)};
    at[A][n - 1] = NAN, at[A][2 * n - 1] = -INFINITY;
    const frnn_program_step step = {.kind = FRNN_STEP_REDUCE,
                                    .y = operand(Y, 0),
                                    .a = operand(A, 0),
                                    .b = NONE,
                                    .c = NONE,
                                    .reduction = reduction,
                                    .rows = ROWS,
                                    .n = n};
    run(&step, 1, at, 1);
    print_hash(at[Y], ROWS);
    free(at[Y]), free(at[A]);
}

static void print_elements(void)
{
    static const ptrdiff_t strides[][3] = {{1, 1, 1}, {1, 1, 0}, {1, 0, 1}, {1, 3, 1}, {2, 1, -3}, {-1, 0, 0}};
    static const size_t sizes[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 50, 64, 65, 97, 130, 200, 257};
    for (size_t which = 0; which < COUNT(sizes); which++) {
        const size_t n = sizes[which];
        seed = (uint32_t)n;
        printf("%zu elements:", n);
        for (size_t k = 0; k < COUNT(strides); k++) {
            const ptrdiff_t *by = strides[k];
            print_step((frnn_program_step){.kind = FRNN_STEP_COPY}, n, by[0], by[1], 0);
            print_step((frnn_program_step){.kind = FRNN_STEP_FILL, .value = 0.75f}, n, by[0], 1, 1);
            for (int kind = FRNN_BINARY_ADD; kind <= FRNN_BINARY_PRELU; kind++) {
                const frnn_program_step step = {.kind = FRNN_STEP_BINARY, .binary = (frnn_binary_kind)kind, .n = n};
                print_step(step, n, by[0], by[1], by[2]);
            }
        }
        for (int kind = FRNN_LINEAR; kind <= FRNN_ROUND; kind++) {
            const frnn_activation activation = {(frnn_activation_kind)kind, 0.75f, 1.25f};
            print_step((frnn_program_step){.kind = FRNN_STEP_ACTIVATE, .activation = activation, .n = n}, n, 1, 1, 1);
        }
        for (int kind = FRNN_REDUCE_SUM; kind <= FRNN_REDUCE_SUM_SQUARE; kind++) print_reduction((frnn_reduction)kind, n);
        printf("\n");
    }
}

/* ---- A small model ---- */

enum { BLOCK, CONSTANTS, INPUT, OUTPUT };

typedef struct {
    frnn_program_step steps[MAX_STEPS];
    size_t count, floats[SLOTS];
} program;

/* Memory for n floats. */
static frnn_operand take(program *p, int slot, size_t n)
{
    const ptrdiff_t offset = (ptrdiff_t)p->floats[slot];
    p->floats[slot] += n;
    return operand(slot, offset);
}

static frnn_operand moved(frnn_operand o, ptrdiff_t by) { return operand(o.slot, o.offset + by); }

static frnn_program_step *add(program *p, frnn_program_step_kind kind, frnn_operand y, frnn_operand a, frnn_operand b, frnn_operand c)
{
    frnn_program_step *step = &p->steps[p->count++];
    *step = (frnn_program_step){.kind = kind, .y = y, .y_2 = NONE, .y_3 = NONE, .a = a, .b = b, .c = c};
    return step;
}

/* Features of rows: turned around, added to, through a chain; their norms, sums, products and layers. */
static program new_program(size_t rows, size_t n, size_t hidden, const frnn_dense *dense, const frnn_recurrent *lstm)
{
    program p = {.count = 0};
    const ptrdiff_t r = (ptrdiff_t)rows, f = (ptrdiff_t)n;
    const size_t size = rows * n;
    const frnn_operand x = take(&p, INPUT, size), one = take(&p, CONSTANTS, 1), row = take(&p, CONSTANTS, n),
                       shift = take(&p, CONSTANTS, n);
    const frnn_operand turned = take(&p, BLOCK, size), wide = take(&p, BLOCK, 2 * size), sums = take(&p, BLOCK, rows);
    const frnn_operand tensors[] = {take(&p, BLOCK, size), take(&p, BLOCK, size), take(&p, BLOCK, size), take(&p, BLOCK, size)};

    add(&p, FRNN_STEP_COPY, turned, x, NONE, NONE)->loops = (frnn_loops){.axes = 2, .size = {rows, n}, .y = {1, r}, .a = {f, 1}};
    frnn_program_step *step = add(&p, FRNN_STEP_FILL, wide, NONE, NONE, NONE); /* every other row */
    step->loops = (frnn_loops){.axes = 2, .size = {rows, n}, .y = {2 * f, 1}}, step->value = 0.25f;
    step = add(&p, FRNN_STEP_BINARY, moved(wide, f), turned, row, NONE); /* the rows between */
    step->loops = (frnn_loops){.axes = 2, .size = {rows, n}, .y = {2 * f, 1}, .a = {1, r}, .b = {0, 1}};
    step->binary = FRNN_BINARY_ADD, step->n = size;

    const size_t chain = p.count;
    const frnn_loops flat = {.axes = 1, .size = {size}, .y = {1}, .a = {1}, .b = {0}};
    step = add(&p, FRNN_STEP_ACTIVATE, tensors[0], x, NONE, NONE);
    step->activation = (frnn_activation){FRNN_TANH, 0, 0};
    step = add(&p, FRNN_STEP_BINARY, tensors[1], tensors[0], one, NONE);
    step->binary = FRNN_BINARY_MUL, step->loops = flat;
    step = add(&p, FRNN_STEP_ACTIVATE, tensors[1], tensors[1], NONE, NONE);
    step->activation = (frnn_activation){FRNN_SIGMOID, 0, 0};
    step = add(&p, FRNN_STEP_BINARY, tensors[2], x, tensors[1], NONE);
    step->binary = FRNN_BINARY_MAX, step->loops = flat, step->loops.b[0] = 1;
    p.steps[chain].chain = p.count - chain;
    for (size_t k = chain; k < p.count; k++) p.steps[k].n = size;

    add(&p, FRNN_STEP_REDUCE, sums, tensors[2], NONE, NONE)->reduction = FRNN_REDUCE_MEAN;
    add(&p, FRNN_STEP_SOFTMAX, tensors[3], tensors[2], NONE, NONE);
    add(&p, FRNN_STEP_LAYER_NORM, take(&p, OUTPUT, size), tensors[3], row, shift)->value = 1e-5f;
    add(&p, FRNN_STEP_SCALE_SHIFT, take(&p, OUTPUT, size), tensors[3], row, shift);
    for (size_t k = p.count - 4; k < p.count; k++) p.steps[k].rows = rows, p.steps[k].n = n;

    /* Rows of `wide` by x turned and by x as it stands, each for two matrices. */
    step = add(&p, FRNN_STEP_MATMUL, take(&p, OUTPUT, 2 * rows * rows), wide, x, NONE);
    step->loops = (frnn_loops){.axes = 2, .size = {2, 1}, .y = {r * r}, .a = {f}, .b = {0}};
    step->rows = rows, step->k = n, step->n = rows;
    step->a_row = 2 * f, step->b_row = 1, step->b_column = f, step->y_row = r;
    step = add(&p, FRNN_STEP_MATMUL, take(&p, OUTPUT, 2 * n * n), turned, wide, NONE);
    step->loops = (frnn_loops){.axes = 2, .size = {2, 1}, .y = {f * f}, .a = {0}, .b = {f}};
    step->rows = n, step->k = rows, step->n = n;
    step->a_row = r, step->b_row = 2 * f, step->b_column = 1, step->y_row = f;

    step = add(&p, FRNN_STEP_DENSE, take(&p, OUTPUT, 2 * rows * hidden), wide, NONE, NONE);
    step->dense = dense, step->rows = rows, step->a_row = 2 * f, step->y_row = 2 * (ptrdiff_t)hidden;
    const size_t states = rows * hidden;
    const frnn_operand h_0 = take(&p, CONSTANTS, states), c_0 = take(&p, CONSTANTS, states);
    step = add(&p, FRNN_STEP_RECURRENT, take(&p, OUTPUT, states), x, h_0, c_0);
    step->y_2 = take(&p, OUTPUT, states), step->y_3 = take(&p, OUTPUT, states);
    step->recurrent = lstm;
    step->call = (frnn_recurrent_call){.batch = rows, .seq_len = 1, .x_batch_stride = f, .y_batch_stride = (ptrdiff_t)hidden};
    return p;
}

static frnn_recurrent *new_lstm(size_t n, size_t hidden)
{
    float *ih = random_floats(4 * hidden * n, 0.5f), *hh = random_floats(4 * hidden * hidden, 0.5f),
          *bias = random_floats(4 * hidden, 0.5f);
    const frnn_recurrent_weights weights = {.weight_ih = ih, .weight_hh = hh, .bias_ih = bias};
    const frnn_recurrent_desc desc = {.cell = FRNN_LSTM,
                                      .input_size = n,
                                      .hidden_size = hidden,
                                      .num_layers = 1,
                                      .directions = 1,
                                      .gate = {FRNN_SIGMOID, 0, 0},
                                      .candidate = {FRNN_TANH, 0, 0},
                                      .hidden = {FRNN_TANH, 0, 0},
                                      .clip = INFINITY,
                                      .cell_clip = INFINITY,
                                      .proj_clip = INFINITY,
                                      .weights = &weights};
    frnn_recurrent *lstm;
    if (frnn_recurrent_create(&lstm, &desc) != FRNN_OK) fail("cannot create", "lstm");
    free(ih), free(hh), free(bias);
    return lstm;
}

static frnn_dense *new_dense(size_t n, size_t outputs)
{
    float *matrix = random_floats(outputs * n, 0.5f), *bias = random_floats(outputs, 0.5f);
    frnn_dense *dense;
    if (frnn_dense_create(&dense, n, outputs, matrix, bias, (frnn_activation){FRNN_ERF, 0, 0}, FRNN_BACKEND_PACKED) != FRNN_OK)
        fail("cannot create", "dense");
    free(matrix), free(bias);
    return dense;
}

/* Run the steps one at a time, on two threads, and compare. */
static bool steps_agree(const program *p, float *const *at)
{
    float *again[] = {new_floats(p->floats[BLOCK]), at[CONSTANTS], at[INPUT], new_floats(p->floats[OUTPUT])};
    for (size_t k = 0; k < p->count; k++) {
        frnn_program_step step = p->steps[k];
        step.chain = 0;
        run(&step, 1, again, 2);
    }
    const bool agree = memcmp(at[BLOCK], again[BLOCK], p->floats[BLOCK] * sizeof(float)) == 0 &&
                       memcmp(at[OUTPUT], again[OUTPUT], p->floats[OUTPUT] * sizeof(float)) == 0;
    free(again[BLOCK]), free(again[OUTPUT]);
    return agree;
}

static bool print_programs(void)
{
    static const size_t sizes[][3] = {{1, 1, 1},   {2, 1, 3},   {1, 7, 5},     {3, 16, 16}, {5, 17, 9},  {8, 3, 31},   {9, 33, 2},
                                      {16, 64, 8}, {33, 5, 6},  {47, 20, 12},  {48, 9, 15}, {49, 31, 7}, {61, 77, 33}, {50, 129, 24},
                                      {7, 300, 4}, {130, 8, 3}, {100, 66, 20}, {97, 48, 1}, {2, 65, 65}, {12, 15, 17}, {4, 257, 40}};
    bool agree = true;
    for (size_t k = 0; k < COUNT(sizes); k++) {
        const size_t rows = sizes[k][0], n = sizes[k][1], hidden = sizes[k][2];
        seed = (uint32_t)k;
        frnn_dense *dense = new_dense(n, hidden);
        frnn_recurrent *lstm = new_lstm(n, hidden);
        const program p = new_program(rows, n, hidden, dense, lstm);
        float *constants = random_floats(p.floats[CONSTANTS], 1.0f), *input = random_floats(p.floats[INPUT], 2.0f);
        float *at[] = {new_floats(p.floats[BLOCK]), constants, input, new_floats(p.floats[OUTPUT])};
        run(p.steps, p.count, at, 1);
        printf("%zu rows of %zu, hidden %zu:", rows, n, hidden);
        print_hash(at[BLOCK], p.floats[BLOCK]), print_hash(at[OUTPUT], p.floats[OUTPUT]);
        printf("\n");
        if (!steps_agree(&p, at)) {
            fprintf(stderr, "steps: %zu rows of %zu: other results step by step\n", rows, n);
            agree = false;
        }
        for (size_t slot = 0; slot < SLOTS; slot++) free(at[slot]);
        frnn_dense_free(dense);
        frnn_recurrent_free(lstm);
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
    if (argc != 3) fail("usage:", "steps isas | steps elements|program ISA");
    if (frnn_set_isa(argv[2]) != FRNN_OK) fail("no instruction set", argv[2]);
    kernels = frnn_kernels_selected();
    if (strcmp(what, "program") == 0) return print_programs() ? 0 : 1;
    if (strcmp(what, "elements") == 0)
        print_elements();
    else
        fail("cannot do", what);
    return 0;
}
