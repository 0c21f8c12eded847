# fastrnn.h, declared.  Same order, same names, no comments: read the header.
from libc.stdint cimport int64_t


cdef extern from "fastrnn.h" nogil:
    ctypedef bint c_bool "bool"

    ctypedef enum frnn_status:
        FRNN_OK, FRNN_ERR_MEMORY, FRNN_ERR_UNKNOWN_ISA, FRNN_ERR_UNSUPPORTED_ISA, FRNN_ERR_NO_BLAS

    size_t frnn_isa_count()
    const char *frnn_isa_name(size_t k)
    const char *frnn_isa()
    frnn_status frnn_set_isa(const char *name)

    size_t frnn_team_backend_count()
    const char *frnn_team_backend_name(size_t k)
    const char *frnn_team_backend()
    c_bool frnn_set_team_backend(const char *name)

    void *frnn_scratch(size_t bytes)
    void *frnn_scratch_set_aside()
    void frnn_scratch_put_back(void *aside)

    ctypedef void frnn_sgemm_fn(char *, char *, int *, int *, int *, float *, float *, int *, float *, int *, float *, float *, int *)
    void frnn_set_blas(frnn_sgemm_fn *sgemm)
    ctypedef enum frnn_backend:
        FRNN_BACKEND_PACKED, FRNN_BACKEND_BLAS

    ctypedef enum frnn_activation_kind:
        FRNN_LINEAR, FRNN_SIGMOID, FRNN_TANH, FRNN_RELU, FRNN_HARD_SIGMOID, FRNN_AFFINE, FRNN_LEAKY_RELU, FRNN_THRESHOLDED_RELU
        FRNN_SCALED_TANH, FRNN_ELU, FRNN_SOFTSIGN, FRNN_SOFTPLUS, FRNN_EXP, FRNN_SELU, FRNN_SILU, FRNN_GELU, FRNN_GELU_TANH, FRNN_MISH
        FRNN_RELU6, FRNN_HARD_TANH, FRNN_HARD_SWISH, FRNN_LOG_SIGMOID, FRNN_CELU, FRNN_ABS, FRNN_NEG, FRNN_SIGN, FRNN_SQUARE
        FRNN_SQRT, FRNN_RECIPROCAL, FRNN_LOG, FRNN_ERF, FRNN_FLOOR, FRNN_CEIL, FRNN_ROUND
    ctypedef struct frnn_activation:
        frnn_activation_kind kind
        float alpha
        float beta

    ctypedef enum frnn_cell_kind:
        FRNN_LSTM, FRNN_GRU, FRNN_RNN
    ctypedef enum frnn_merge:
        FRNN_CONCAT, FRNN_SUM, FRNN_MUL, FRNN_AVE
    ctypedef struct frnn_recurrent_weights:
        const float *weight_ih
        const float *weight_hh
        const float *bias_ih
        const float *bias_hh
        const float *weight_hr
        const float *peephole
    ctypedef struct frnn_recurrent_desc:
        frnn_cell_kind cell
        size_t input_size
        size_t hidden_size
        size_t proj_size
        size_t num_layers
        size_t directions
        c_bool reverse
        frnn_merge merge
        frnn_activation gate
        frnn_activation candidate
        frnn_activation hidden
        float clip
        float cell_clip
        float proj_clip
        c_bool coupled_input_forget
        c_bool reset_before
        frnn_backend backend
        const frnn_recurrent_weights *weights
    ctypedef enum frnn_padding:
        FRNN_PAD_ZERO, FRNN_PAD_REPEAT
    ctypedef struct frnn_recurrent_call:
        size_t batch
        size_t seq_len
        const float *x
        ptrdiff_t x_batch_stride
        ptrdiff_t x_time_stride
        float *y
        ptrdiff_t y_batch_stride
        ptrdiff_t y_time_stride
        const float *h_0
        const float *c_0
        float *h_n
        float *c_n
        const int64_t *state_rows
        size_t state_capacity
        const float **x_rows
        float **y_rows
        const int64_t *lengths
        const int64_t *times
        frnn_padding padding
        size_t threads
        c_bool (*poll)(void *arg) noexcept nogil
        void *poll_arg
    ctypedef struct frnn_recurrent:
        pass
    frnn_status frnn_recurrent_create(frnn_recurrent **out, const frnn_recurrent_desc *desc)
    void frnn_recurrent_free(frnn_recurrent *net)
    size_t frnn_recurrent_bytes(const frnn_recurrent *net)
    size_t frnn_recurrent_scratch(const frnn_recurrent *net, const frnn_recurrent_call *call)
    c_bool frnn_recurrent_forward(const frnn_recurrent *net, const frnn_recurrent_call *call, void *scratch)
    ctypedef struct frnn_recurrent_plan:
        char kernel[48]
        const char *isa
        const char *split
        size_t threads
        size_t chunk_steps
    frnn_recurrent_plan frnn_recurrent_explain(const frnn_recurrent *net, const frnn_recurrent_call *call)

    ctypedef struct frnn_dense:
        pass
    frnn_status frnn_dense_create(frnn_dense **out, size_t input_size, size_t output_size, const float *weight, const float *bias,
                                  frnn_activation activation, frnn_backend backend)
    void frnn_dense_free(frnn_dense *layer)
    size_t frnn_dense_bytes(const frnn_dense *layer)
    size_t frnn_dense_scratch(const frnn_dense *layer, size_t rows, size_t threads)
    c_bool frnn_dense_forward(const frnn_dense *layer, size_t rows, const float *x, ptrdiff_t x_stride, float *y, ptrdiff_t y_stride,
                              size_t threads, void *scratch, c_bool (*poll)(void *arg) noexcept nogil, void *poll_arg)

    ctypedef struct frnn_kernels:
        pass
    const frnn_kernels *frnn_kernels_selected()
    void frnn_activate(const frnn_kernels *kernels, frnn_activation activation, size_t n, const float *x, float *y)
    void frnn_softmax(const frnn_kernels *kernels, size_t rows, size_t n, const float *x, float *y, c_bool logarithm)
    void frnn_layer_norm(const frnn_kernels *kernels, size_t rows, size_t n, const float *x, const float *weight, const float *bias,
                         float eps, float *y)
    void frnn_scale_shift(const frnn_kernels *kernels, size_t rows, size_t n, const float *x, const float *scale, const float *shift,
                          float *y)

    enum:
        FRNN_MAX_AXES, FRNN_NO_SLOT
    ctypedef enum frnn_binary_kind:
        FRNN_BINARY_ADD, FRNN_BINARY_SUB, FRNN_BINARY_MUL, FRNN_BINARY_DIV, FRNN_BINARY_POW, FRNN_BINARY_MIN, FRNN_BINARY_MAX
        FRNN_BINARY_PRELU
    ctypedef enum frnn_reduction:
        FRNN_REDUCE_SUM, FRNN_REDUCE_MEAN, FRNN_REDUCE_MAX, FRNN_REDUCE_MIN, FRNN_REDUCE_PROD, FRNN_REDUCE_L1, FRNN_REDUCE_SUM_SQUARE
    ctypedef struct frnn_operand:
        int slot
        ptrdiff_t offset
    ctypedef struct frnn_loops:
        size_t axes
        size_t *size
        ptrdiff_t *y
        ptrdiff_t *a
        ptrdiff_t *b
    ctypedef enum frnn_program_step_kind:
        FRNN_STEP_COPY, FRNN_STEP_FILL, FRNN_STEP_BINARY, FRNN_STEP_ACTIVATE, FRNN_STEP_REDUCE, FRNN_STEP_SOFTMAX, FRNN_STEP_LAYER_NORM
        FRNN_STEP_SCALE_SHIFT, FRNN_STEP_MATMUL, FRNN_STEP_DENSE, FRNN_STEP_RECURRENT
    ctypedef struct frnn_program_step:
        frnn_program_step_kind kind
        frnn_operand y
        frnn_operand y_2
        frnn_operand y_3
        frnn_operand a
        frnn_operand b
        frnn_operand c
        frnn_loops loops
        size_t rows
        size_t n
        size_t k
        ptrdiff_t a_row
        ptrdiff_t b_row
        ptrdiff_t b_column
        ptrdiff_t y_row
        float value
        c_bool logarithm
        frnn_binary_kind binary
        frnn_reduction reduction
        frnn_activation activation
        const frnn_dense *dense
        const frnn_recurrent *recurrent
        frnn_recurrent_call call
        size_t chain
    size_t frnn_program_scratch(const frnn_kernels *kernels, const frnn_program_step *steps, size_t count, size_t threads)
    c_bool frnn_program_run(const frnn_kernels *kernels, const frnn_program_step *steps, size_t count, float **at, size_t threads,
                            void *scratch, c_bool (*poll)(void *arg) noexcept nogil, void *poll_arg)
