/* fastrnn.h: recurrent-network inference on the CPU.
 *
 * Use:      create a layer from its weights, run forward as often as you like, free it.
 * Errors:   only create can fail; it returns a status and leaves *out NULL.  Forward checks nothing, allocates
 *           nothing and cannot fail: whoever calls it has checked the shapes.
 * Threads:  a layer never changes after create, so any number of threads may share it.
 * Arrays:   float32.  Strides are in floats; features are contiguous.
 * Scratch:  forward works in memory that the caller lends, `..._scratch` bytes; frnn_scratch keeps such memory per thread. */
#ifndef FASTRNN_H
#define FASTRNN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum frnn_status { FRNN_OK, FRNN_ERR_MEMORY, FRNN_ERR_UNKNOWN_ISA, FRNN_ERR_UNSUPPORTED_ISA, FRNN_ERR_NO_BLAS } frnn_status;

/* ---- Instruction sets: the best one is chosen at the first use; a choice acts on layers created afterwards. ---- */

size_t frnn_isa_count(void);         /* built in and supported by this machine */
const char *frnn_isa_name(size_t k); /* best first */
const char *frnn_isa(void);          /* the one in use */
frnn_status frnn_set_isa(const char *name);

/* ---- Threads: one team a process.  A caller that finds it taken runs alone. ---- */

size_t frnn_team_backend_count(void);
const char *frnn_team_backend_name(size_t k); /* default first */
const char *frnn_team_backend(void);
bool frnn_set_team_backend(const char *name); /* false: unknown */

/* ---- Memory ---- */

/* At least `bytes` of memory of the calling thread, aligned to 64; valid until its next call.  NULL: out of memory. */
void *frnn_scratch(size_t bytes);

/* For a poll that runs foreign code, which may make calls of its own on this thread: the scratch in use is set aside
 * before and put back after it. */
void *frnn_scratch_set_aside(void);
void frnn_scratch_put_back(void *aside);

/* ---- BLAS: pointers with Fortran's calling convention, from whoever has one. ---- */

typedef void frnn_sgemm_fn(char *transa, char *transb, int *m, int *n, int *k, float *alpha, float *a, int *lda, float *b, int *ldb,
                           float *beta, float *c, int *ldc);
void frnn_set_blas(frnn_sgemm_fn *sgemm);

typedef enum frnn_backend { FRNN_BACKEND_PACKED, FRNN_BACKEND_BLAS } frnn_backend;

/* ---- Activations; formulas in fastrnn/reference.py ---- */

typedef enum frnn_activation_kind {
    FRNN_LINEAR,
    FRNN_SIGMOID,
    FRNN_TANH,
    FRNN_RELU,
    FRNN_HARD_SIGMOID,
    FRNN_AFFINE,
    FRNN_LEAKY_RELU,
    FRNN_THRESHOLDED_RELU,
    FRNN_SCALED_TANH,
    FRNN_ELU,
    FRNN_SOFTSIGN,
    FRNN_SOFTPLUS,
    FRNN_EXP,
    FRNN_SELU,
    FRNN_SILU,
    FRNN_GELU,
    FRNN_GELU_TANH,
    FRNN_MISH,
    FRNN_RELU6,
    FRNN_HARD_TANH,
    FRNN_HARD_SWISH,
    FRNN_LOG_SIGMOID,
    FRNN_CELU,
    FRNN_ABS,
    FRNN_NEG,
    FRNN_SIGN,
    FRNN_SQUARE,
    FRNN_SQRT,
    FRNN_RECIPROCAL,
    FRNN_LOG,
    FRNN_ERF,
    FRNN_FLOOR,
    FRNN_CEIL,
    FRNN_ROUND
} frnn_activation_kind;

typedef struct frnn_activation {
    frnn_activation_kind kind;
    float alpha, beta;
} frnn_activation;

/* ---- Recurrent layers: LSTM, GRU and simple RNN, any number of layers, one or two directions ---- */

typedef enum frnn_cell_kind { FRNN_LSTM, FRNN_GRU, FRNN_RNN } frnn_cell_kind;
typedef enum frnn_merge { FRNN_CONCAT, FRNN_SUM, FRNN_MUL, FRNN_AVE } frnn_merge;

/* One layer in one direction, in PyTorch's layout; NULL where a part is absent. */
typedef struct frnn_recurrent_weights {
    const float *weight_ih; /* (gates * hidden_size, input_size of this layer) */
    const float *weight_hh; /* (gates * hidden_size, output_size) */
    const float *bias_ih;   /* (gates * hidden_size) */
    const float *bias_hh;   /* (gates * hidden_size) */
    const float *weight_hr; /* (proj_size, hidden_size) */
    const float *peephole;  /* (3 * hidden_size), i f o */
} frnn_recurrent_weights;

typedef struct frnn_recurrent_desc {
    frnn_cell_kind cell;
    size_t input_size, hidden_size;
    size_t proj_size; /* LSTM; 0: none.  The output size is proj_size or hidden_size. */
    size_t num_layers;
    size_t directions;          /* 1 or 2 */
    bool reverse;               /* of one direction: from the last step to the first */
    frnn_merge merge;           /* of two directions, in the last layer; inner layers concatenate */
    frnn_activation gate;       /* LSTM i f o, GRU r z */
    frnn_activation candidate;  /* LSTM g, GRU n, RNN */
    frnn_activation hidden;     /* LSTM h = o hidden(c) */
    float clip;                 /* bound on pre-activations; INFINITY: none */
    float cell_clip, proj_clip; /* bounds on c and on the projected h */
    bool coupled_input_forget;
    bool reset_before; /* GRU */
    frnn_backend backend;
    const frnn_recurrent_weights *weights; /* num_layers * directions: layer 0, layer 0 reverse, layer 1, ... */
} frnn_recurrent_desc;

/* What y holds at steps that are not run (beyond a length, or masked). */
typedef enum frnn_padding { FRNN_PAD_ZERO, FRNN_PAD_REPEAT } frnn_padding;

typedef struct frnn_recurrent_call {
    size_t batch, seq_len;
    const float *x; /* (batch, seq_len, input_size) by strides */
    ptrdiff_t x_batch_stride, x_time_stride;
    float *y; /* (batch, seq_len, directions * output_size, or output_size if merged) by strides; NULL: not wanted */
    ptrdiff_t y_batch_stride, y_time_stride;
    const float *h_0, *c_0; /* (num_layers * directions, batch, output_size | hidden_size); NULL: zeros */
    float *h_n, *c_n;       /* the same shapes; NULL: not wanted; may be h_0, c_0 */
    const int64_t
        *state_rows; /* (batch), all different: row b's states stand at state_rows[b] of state_capacity rows; NULL: at b of batch */
    size_t state_capacity;
    const float *const *x_rows; /* (batch): where the steps of each row begin; NULL: by x and its stride */
    float *const *y_rows;       /* (batch): the same for y, of which then nothing beyond the lengths is written */
    const int64_t *lengths;     /* (batch), 0 to seq_len; NULL: all run to the end */
    const int64_t *times;       /* (batch, seq_len): row b runs the steps times[b][0 .. lengths[b]), ascending; the others
                                   follow, ascending; NULL: 0, 1, 2, ... */
    frnn_padding padding;
    size_t threads;          /* at most; 0: one */
    bool (*poll)(void *arg); /* called by the calling thread between chunks of long calls; true: stop */
    void *poll_arg;
} frnn_recurrent_call;

typedef struct frnn_recurrent frnn_recurrent;

frnn_status frnn_recurrent_create(frnn_recurrent **out, const frnn_recurrent_desc *desc);
void frnn_recurrent_free(frnn_recurrent *net);          /* accepts NULL */
size_t frnn_recurrent_bytes(const frnn_recurrent *net); /* of packed weights */
size_t frnn_recurrent_scratch(const frnn_recurrent *net, const frnn_recurrent_call *call);
/* False where poll stopped it; y and the states are then incomplete. */
bool frnn_recurrent_forward(const frnn_recurrent *net, const frnn_recurrent_call *call, void *scratch);

/* How a call would run. */
typedef struct frnn_recurrent_plan {
    char kernel[48]; /* the cell and what is done around it, as "lstm", "gru variant", "blas + lstm + projection" */
    const char *isa;
    const char *split; /* "none", "batch", "directions", "hidden" */
    size_t threads, chunk_steps;
} frnn_recurrent_plan;
frnn_recurrent_plan frnn_recurrent_explain(const frnn_recurrent *net, const frnn_recurrent_call *call);

/* ---- Dense: y = activation(x W^T + b) ---- */

typedef struct frnn_dense frnn_dense;

frnn_status frnn_dense_create(frnn_dense **out, size_t input_size, size_t output_size, const float *weight, /* (output_size, input_size) */
                              const float *bias,                                                            /* or NULL */
                              frnn_activation activation, frnn_backend backend);
void frnn_dense_free(frnn_dense *layer); /* accepts NULL */
size_t frnn_dense_bytes(const frnn_dense *layer);
size_t frnn_dense_scratch(const frnn_dense *layer, size_t rows, size_t threads);
/* False where `poll` (NULL: none), asked now and then, said so; y is then incomplete. */
bool frnn_dense_forward(const frnn_dense *layer, size_t rows, const float *x, ptrdiff_t x_stride, float *y, ptrdiff_t y_stride,
                        size_t threads, void *scratch, bool (*poll)(void *arg), void *poll_arg);

/* ---- Functions of rows and elements, on contiguous arrays; y may be x ---- */

typedef struct frnn_kernels frnn_kernels; /* the kernels of one instruction set */

const frnn_kernels *frnn_kernels_selected(void); /* those of frnn_isa() */
void frnn_activate(const frnn_kernels *kernels, frnn_activation activation, size_t n, const float *x, float *y);
void frnn_softmax(const frnn_kernels *kernels, size_t rows, size_t n, const float *x, float *y, bool logarithm);
void frnn_layer_norm(const frnn_kernels *kernels, size_t rows, size_t n, const float *x, const float *weight, const float *bias, float eps,
                     float *y);
void frnn_scale_shift(const frnn_kernels *kernels, size_t rows, size_t n, const float *x, const float *scale, const float *shift, float *y);

/* ---- Programs: a whole model as a list of steps between tensors, for one set of shapes ----
 *
 * A step reads and writes operands: floats at at[slot] + offset, where `at` is a table of pointers that the caller fills:
 * inputs, outputs, constants and one block of intermediate results.  Steps run in order, on the calling thread but for
 * those that share their work themselves (recurrent, dense). */

enum { FRNN_MAX_AXES = 8, FRNN_NO_SLOT = -1 };

typedef enum frnn_binary_kind {
    FRNN_BINARY_ADD,
    FRNN_BINARY_SUB,
    FRNN_BINARY_MUL,
    FRNN_BINARY_DIV,
    FRNN_BINARY_POW,
    FRNN_BINARY_MIN,
    FRNN_BINARY_MAX,
    FRNN_BINARY_PRELU /* a where a >= 0, else a b */
} frnn_binary_kind;

typedef enum frnn_reduction {
    FRNN_REDUCE_SUM,
    FRNN_REDUCE_MEAN,
    FRNN_REDUCE_MAX,
    FRNN_REDUCE_MIN,
    FRNN_REDUCE_PROD,
    FRNN_REDUCE_L1,
    FRNN_REDUCE_SUM_SQUARE
} frnn_reduction;

typedef struct frnn_operand {
    int slot; /* FRNN_NO_SLOT: absent */
    ptrdiff_t offset;
} frnn_operand;

/* Nested loops, the innermost last; strides in floats. */
typedef struct frnn_loops {
    size_t axes;
    size_t size[FRNN_MAX_AXES];
    ptrdiff_t y[FRNN_MAX_AXES], a[FRNN_MAX_AXES], b[FRNN_MAX_AXES];
} frnn_loops;

typedef enum frnn_program_step_kind {
    FRNN_STEP_COPY,        /* y = a */
    FRNN_STEP_FILL,        /* y = value */
    FRNN_STEP_BINARY,      /* y = a (binary) b */
    FRNN_STEP_ACTIVATE,    /* y = activation(a), contiguous; y may be a */
    FRNN_STEP_REDUCE,      /* y[row] = reduction of a[row] */
    FRNN_STEP_SOFTMAX,     /* over contiguous rows, as the three that follow */
    FRNN_STEP_LAYER_NORM,  /* b: weight, c: bias, or absent */
    FRNN_STEP_SCALE_SHIFT, /* y = a b + c */
    FRNN_STEP_MATMUL,      /* y (m, n) = a (m, k) b (k, n), for each index of the loops */
    FRNN_STEP_DENSE,
    FRNN_STEP_RECURRENT /* a: x, b: h_0, c: c_0, y, y_2: h_n, y_3: c_n */
} frnn_program_step_kind;

typedef struct frnn_program_step {
    frnn_program_step_kind kind;
    frnn_operand y, y_2, y_3, a, b, c;
    frnn_loops loops;                        /* copy, fill, binary, matmul */
    size_t rows, n;                          /* rows of n elements; activate: n alone; dense: rows; matmul: rows of a and columns of b */
    size_t k;                                /* matmul */
    ptrdiff_t a_row, b_row, b_column, y_row; /* matmul, dense: strides; the rows of a and y are contiguous */
    float value;                             /* fill; epsilon of layer_norm */
    bool logarithm;                          /* softmax */
    frnn_binary_kind binary;
    frnn_reduction reduction;
    frnn_activation activation;
    const frnn_dense *dense;
    const frnn_recurrent *recurrent;
    frnn_recurrent_call call; /* recurrent: sizes, strides and poll; pointers and threads are filled in */
    size_t chain;             /* so many steps from here are element-wise over the same n contiguous elements (b may be one element):
                                 they may run block by block; 0: no */
} frnn_program_step;

size_t frnn_program_scratch(const frnn_kernels *kernels, const frnn_program_step *steps, size_t count, size_t threads);
/* False where `poll` (NULL: none) or that of a recurrent layer stopped it; the outputs are then incomplete. */
bool frnn_program_run(const frnn_kernels *kernels, const frnn_program_step *steps, size_t count, float *const *at, size_t threads,
                      void *scratch, bool (*poll)(void *arg), void *poll_arg);

#endif
