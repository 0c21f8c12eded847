# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""Handles over the C library: lifetime, buffers and the GIL; no arithmetic and no policy.

Whoever calls has checked shapes (layers.py, recurrent.py), and made arrays what C reads (arrays.py).
"""

from libc.math cimport INFINITY
from libc.stdint cimport int64_t, uint32_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from cpython.number cimport PyNumber_AsSsize_t
from cpython.pythread cimport (
    NOWAIT_LOCK,
    PyThread_acquire_lock,
    PyThread_allocate_lock,
    PyThread_free_lock,
    PyThread_release_lock,
    PyThread_type_lock,
)

cimport numpy as cnp

from . cimport _c_api as c_api

from .errors import ConcurrentUseError

cnp.import_array()


cdef extern from "<fenv.h>" nogil:
    ctypedef struct fenv_t:
        pass
    const fenv_t *FE_DFL_ENV
    int fegetenv(fenv_t *env)
    int fesetenv(const fenv_t *env)

cdef extern from "Python.h" nogil:
    int PyErr_CheckSignals() noexcept

cdef enum:
    KEEP_GIL_FLOPS = 200000  # a few microseconds: less than handing the GIL over may cost

ACTIVATION_KINDS = {
    "linear": c_api.FRNN_LINEAR, "sigmoid": c_api.FRNN_SIGMOID, "tanh": c_api.FRNN_TANH, "relu": c_api.FRNN_RELU,
    "hard_sigmoid": c_api.FRNN_HARD_SIGMOID, "affine": c_api.FRNN_AFFINE, "leaky_relu": c_api.FRNN_LEAKY_RELU,
    "thresholded_relu": c_api.FRNN_THRESHOLDED_RELU, "scaled_tanh": c_api.FRNN_SCALED_TANH, "elu": c_api.FRNN_ELU,
    "softsign": c_api.FRNN_SOFTSIGN, "softplus": c_api.FRNN_SOFTPLUS, "exp": c_api.FRNN_EXP, "selu": c_api.FRNN_SELU,
    "silu": c_api.FRNN_SILU, "gelu": c_api.FRNN_GELU, "gelu_tanh": c_api.FRNN_GELU_TANH, "mish": c_api.FRNN_MISH,
    "relu6": c_api.FRNN_RELU6, "hard_tanh": c_api.FRNN_HARD_TANH, "hard_swish": c_api.FRNN_HARD_SWISH,
    "log_sigmoid": c_api.FRNN_LOG_SIGMOID, "celu": c_api.FRNN_CELU, "abs": c_api.FRNN_ABS, "neg": c_api.FRNN_NEG,
    "sign": c_api.FRNN_SIGN, "square": c_api.FRNN_SQUARE, "sqrt": c_api.FRNN_SQRT, "reciprocal": c_api.FRNN_RECIPROCAL,
    "log": c_api.FRNN_LOG, "erf": c_api.FRNN_ERF, "floor": c_api.FRNN_FLOOR, "ceil": c_api.FRNN_CEIL, "round": c_api.FRNN_ROUND,
}
BINARY_KINDS = {
    "add": c_api.FRNN_BINARY_ADD, "sub": c_api.FRNN_BINARY_SUB, "mul": c_api.FRNN_BINARY_MUL, "div": c_api.FRNN_BINARY_DIV,
    "pow": c_api.FRNN_BINARY_POW, "min": c_api.FRNN_BINARY_MIN, "max": c_api.FRNN_BINARY_MAX, "prelu": c_api.FRNN_BINARY_PRELU,
}
REDUCTION_KINDS = {
    "sum": c_api.FRNN_REDUCE_SUM, "mean": c_api.FRNN_REDUCE_MEAN, "max": c_api.FRNN_REDUCE_MAX, "min": c_api.FRNN_REDUCE_MIN,
    "prod": c_api.FRNN_REDUCE_PROD, "l1": c_api.FRNN_REDUCE_L1, "sum_square": c_api.FRNN_REDUCE_SUM_SQUARE,
}
STEP_KINDS = {
    "copy": c_api.FRNN_STEP_COPY, "fill": c_api.FRNN_STEP_FILL, "binary": c_api.FRNN_STEP_BINARY,
    "activate": c_api.FRNN_STEP_ACTIVATE, "reduce": c_api.FRNN_STEP_REDUCE, "softmax": c_api.FRNN_STEP_SOFTMAX,
    "layer_norm": c_api.FRNN_STEP_LAYER_NORM, "scale_shift": c_api.FRNN_STEP_SCALE_SHIFT, "matmul": c_api.FRNN_STEP_MATMUL,
    "dense": c_api.FRNN_STEP_DENSE, "recurrent": c_api.FRNN_STEP_RECURRENT,
}
CELLS = {"lstm": c_api.FRNN_LSTM, "gru": c_api.FRNN_GRU, "rnn": c_api.FRNN_RNN}
MERGES = {"concat": c_api.FRNN_CONCAT, "sum": c_api.FRNN_SUM, "mul": c_api.FRNN_MUL, "ave": c_api.FRNN_AVE}
BACKENDS = {"packed": c_api.FRNN_BACKEND_PACKED, "blas": c_api.FRNN_BACKEND_BLAS}
PADDINGS = {"zero": c_api.FRNN_PAD_ZERO, "repeat": c_api.FRNN_PAD_REPEAT}


# ---- The library ----

def isas():
    """Names of the instruction sets that this build and this machine have, best first."""
    return [c_api.frnn_isa_name(k).decode() for k in range(c_api.frnn_isa_count())]


def isa():
    """Name of the instruction set in use."""
    return c_api.frnn_isa().decode()


def set_isa(name):
    """Choose the instruction set of layers built from now on; False: not supported here."""
    return c_api.frnn_set_isa(name.encode()) == c_api.FRNN_OK


def teams():
    """Names of the thread backends of this build, default first."""
    return [c_api.frnn_team_backend_name(k).decode() for k in range(c_api.frnn_team_backend_count())]


def team():
    """Name of the thread backend in use."""
    return c_api.frnn_team_backend().decode()


def set_team(name):
    """Choose the thread backend; False: unknown."""
    return bool(c_api.frnn_set_team_backend(name.encode()))


def set_blas(uintptr_t sgemm):
    """Hand over the address of a Fortran sgemm."""
    c_api.frnn_set_blas(<c_api.frnn_sgemm_fn *> sgemm)


cdef class FloatMode:
    """``with FloatMode():`` is a block in the floating-point mode that a process begins with: to nearest, denormals kept,
    no exception trapped.  After it the thread has its mode, and the flags of past exceptions, as they were."""

    cdef fenv_t saved

    def __enter__(self):
        fegetenv(&self.saved)
        fesetenv(FE_DFL_ENV)

    def __exit__(self, kind, error, traceback):
        fesetenv(&self.saved)


# ---- Helpers ----

cdef int check(c_api.frnn_status status) except -1:
    if status == c_api.FRNN_OK:
        return 0
    if status == c_api.FRNN_ERR_MEMORY:
        raise MemoryError("not enough memory to pack the weights")
    raise RuntimeError(f"unexpected status {status} from the C library")


cdef int fit(cnp.ndarray array, int kind) except -1:
    """Refuse what C cannot read; whoever calls has made arrays with c_array (arrays.py)."""
    if cnp.PyArray_TYPE(array) != kind or not cnp.PyArray_ISCARRAY_RO(array):
        raise ValueError(f"an array of {array.dtype} reached C that is not as c_array() makes it")
    return 0


cdef float *floats(array) except? NULL:
    """Data of a float32 array; NULL for None."""
    if array is None:
        return NULL
    fit(<cnp.ndarray> array, cnp.NPY_FLOAT32)
    return <float *> cnp.PyArray_DATA(<cnp.ndarray> array)


cdef int64_t *integers(array) except? NULL:
    """Data of an int64 array; NULL for None."""
    if array is None:
        return NULL
    fit(<cnp.ndarray> array, cnp.NPY_INT64)
    return <int64_t *> cnp.PyArray_DATA(<cnp.ndarray> array)


cdef bint is_exact(object array, Py_ssize_t a, Py_ssize_t b, Py_ssize_t c, bint writable):
    """Whether this is a float32 array of shape (a, b, c) that can be used as it is."""
    cdef cnp.ndarray x
    if not cnp.PyArray_CheckExact(array):
        return False
    x = <cnp.ndarray> array
    if cnp.PyArray_TYPE(x) != cnp.NPY_FLOAT32 or cnp.PyArray_NDIM(x) != 3 or not cnp.PyArray_ISCARRAY_RO(x):
        return False
    if writable and not cnp.PyArray_ISWRITEABLE(x):
        return False
    return cnp.PyArray_DIM(x, 0) == a and cnp.PyArray_DIM(x, 1) == b and cnp.PyArray_DIM(x, 2) == c


cdef bint overlap(cnp.ndarray a, cnp.ndarray b):
    """Whether two contiguous arrays share memory."""
    cdef const char *a_data = <const char *> cnp.PyArray_DATA(a)
    cdef const char *b_data = <const char *> cnp.PyArray_DATA(b)
    return a_data < b_data + cnp.PyArray_NBYTES(b) and b_data < a_data + cnp.PyArray_NBYTES(a)


cdef c_api.frnn_activation activation(tuple value):
    cdef c_api.frnn_activation a
    a.kind = ACTIVATION_KINDS[value[0]]
    a.alpha = value[1]
    a.beta = value[2]
    return a


cdef float bound(value):
    return INFINITY if value is None else value


cdef void *scratch(size_t size) except NULL:
    cdef void *memory = c_api.frnn_scratch(size)
    if memory == NULL:
        raise MemoryError(f"not enough memory for {size} bytes of scratch")
    return memory


cdef c_api.c_bool poll_signals(void *arg) noexcept nogil:
    cdef c_api.c_bool stop
    cdef void *aside
    with gil:  # a handler may call a layer on this thread
        aside = c_api.frnn_scratch_set_aside()
        stop = PyErr_CheckSignals() != 0
        c_api.frnn_scratch_put_back(aside)
    return stop


cdef int raise_pending() except -1:
    """Raise the exception that a signal handler has left."""
    return -1


# ---- Recurrent layers ----

cdef class RecurrentHandle:
    """A packed stack of recurrent layers.

    ``weights`` has a tuple (weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, peephole) of float32 arrays or None
    for each layer and direction.
    """

    cdef c_api.frnn_recurrent *net
    cdef size_t input_size, hidden_size, output_size, states
    cdef bint has_c
    cdef double flops_a_step

    def __cinit__(self, str cell, list weights, size_t input_size, size_t hidden_size, size_t proj_size, size_t num_layers,
                  size_t directions, bint reverse, str merge, tuple gate, tuple candidate, tuple hidden, clip, cell_clip, proj_clip,
                  bint coupled_input_forget, bint reset_before, str backend):
        cdef c_api.frnn_recurrent_desc desc
        cdef c_api.frnn_recurrent_weights *arrays
        cdef Py_ssize_t k
        desc.cell = CELLS[cell]
        desc.input_size, desc.hidden_size, desc.proj_size = input_size, hidden_size, proj_size
        desc.num_layers, desc.directions = num_layers, directions
        desc.reverse, desc.merge = reverse, MERGES[merge]
        desc.gate, desc.candidate, desc.hidden = activation(gate), activation(candidate), activation(hidden)
        desc.clip, desc.cell_clip, desc.proj_clip = bound(clip), bound(cell_clip), bound(proj_clip)
        desc.coupled_input_forget, desc.reset_before = coupled_input_forget, reset_before
        desc.backend = BACKENDS[backend]
        arrays = <c_api.frnn_recurrent_weights *> calloc(len(weights), sizeof(c_api.frnn_recurrent_weights))
        if arrays == NULL:
            raise MemoryError("not enough memory to pack the weights")
        try:
            for k, (weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, peephole) in enumerate(weights):
                arrays[k].weight_ih, arrays[k].weight_hh = floats(weight_ih), floats(weight_hh)
                arrays[k].bias_ih, arrays[k].bias_hh = floats(bias_ih), floats(bias_hh)
                arrays[k].weight_hr, arrays[k].peephole = floats(weight_hr), floats(peephole)
            desc.weights = arrays
            check(c_api.frnn_recurrent_create(&self.net, &desc))
        finally:
            free(arrays)
        self.input_size, self.hidden_size, self.output_size = input_size, hidden_size, proj_size or hidden_size
        self.states, self.has_c = num_layers * directions, cell == "lstm"
        self.flops_a_step = c_api.frnn_recurrent_bytes(self.net) / 2

    def __dealloc__(self):
        c_api.frnn_recurrent_free(self.net)

    @property
    def nbytes(self):
        """Bytes of packed weights."""
        return c_api.frnn_recurrent_bytes(self.net)

    cdef c_api.frnn_recurrent_call call_of(self, Py_ssize_t batch, Py_ssize_t seq_len, size_t threads):
        cdef c_api.frnn_recurrent_call call
        call.batch, call.seq_len, call.threads = batch, seq_len, threads
        call.x = NULL
        call.y = call.h_n = call.c_n = NULL
        call.h_0 = call.c_0 = NULL
        call.state_rows = NULL
        call.state_capacity = 0
        call.x_rows = NULL
        call.y_rows = NULL
        call.lengths = call.times = NULL
        call.padding = c_api.FRNN_PAD_ZERO
        call.poll = poll_signals
        call.poll_arg = NULL
        return call

    def explain(self, Py_ssize_t batch, Py_ssize_t seq_len, size_t threads):
        """How a call of this size would run."""
        cdef c_api.frnn_recurrent_call call = self.call_of(batch, seq_len, threads)
        cdef c_api.frnn_recurrent_plan plan = c_api.frnn_recurrent_explain(self.net, &call)
        return {"kernel": plan.kernel.decode(), "isa": plan.isa.decode(), "split": plan.split.decode(),
                "threads": plan.threads, "chunk_steps": plan.chunk_steps}

    cdef int place(self, c_api.frnn_recurrent_call *call, cnp.ndarray x, bint batch_first, h_0, c_0, y, h_n, c_n) except -1:
        """Point a call at its arrays."""
        cdef Py_ssize_t batch = call.batch, seq_len = call.seq_len, features
        call.x = floats(x)
        call.x_batch_stride = self.input_size * (seq_len if batch_first else 1)
        call.x_time_stride = self.input_size * (1 if batch_first else batch)
        if y is not None:
            features = cnp.PyArray_DIM(<cnp.ndarray> y, 2)
            call.y = floats(y)
            call.y_batch_stride = features * (seq_len if batch_first else 1)
            call.y_time_stride = features * (1 if batch_first else batch)
        call.h_0, call.c_0 = floats(h_0), floats(c_0)
        call.h_n, call.c_n = floats(h_n), floats(c_n)
        return 0

    cdef int run(self, c_api.frnn_recurrent_call *call) except -1:
        cdef void *memory = scratch(c_api.frnn_recurrent_scratch(self.net, call))
        cdef c_api.c_bool finished
        if self.flops_a_step * call.batch * call.seq_len < KEEP_GIL_FLOPS:
            finished = c_api.frnn_recurrent_forward(self.net, call, memory)
        else:
            with nogil:
                finished = c_api.frnn_recurrent_forward(self.net, call, memory)
        return 0 if finished else raise_pending()

    def forward(self, cnp.ndarray x, bint batch_first, h_0, c_0, y, h_n, c_n, lengths, times, str padding, bint reverse_output,
                size_t threads):
        """Run x, (batch, seq_len, input_size) or time first, into y, h_n and c_n; see frnn_recurrent_call."""
        cdef Py_ssize_t batch = cnp.PyArray_DIM(x, 0 if batch_first else 1), seq_len = cnp.PyArray_DIM(x, 1 if batch_first else 0)
        cdef c_api.frnn_recurrent_call call = self.call_of(batch, seq_len, threads)
        self.place(&call, x, batch_first, h_0, c_0, y, h_n, c_n)
        if y is not None and reverse_output and seq_len > 0:
            call.y += (seq_len - 1) * call.y_time_stride
            call.y_time_stride = -call.y_time_stride
        call.lengths, call.times = integers(lengths), integers(times)
        call.padding = PADDINGS[padding]
        self.run(&call)

    def forward_exact(self, x, state, out, bint batch_first, Py_ssize_t features, size_t threads):
        """Run the plain call, whole sequences from ``state`` into ``out`` (None: new arrays), where every array already is
        what C takes; returns (y, state).

        None: something is not, and nothing was done; the caller then converts it or says what is wrong.  Checked here
        because a step of a small network takes less time than these questions asked in Python.
        """
        cdef Py_ssize_t states = self.states, batch, seq_len, k, n
        cdef cnp.npy_intp shape[3]
        cdef bint has_c = self.has_c
        cdef c_api.frnn_recurrent_call call
        if not cnp.PyArray_CheckExact(x) or cnp.PyArray_NDIM(<cnp.ndarray> x) != 3:
            return None
        shape[0], shape[1] = cnp.PyArray_DIM(<cnp.ndarray> x, 0), cnp.PyArray_DIM(<cnp.ndarray> x, 1)
        batch, seq_len = (shape[0], shape[1]) if batch_first else (shape[1], shape[0])
        h_0 = c_0 = c_n = None
        if has_c and state is not None:
            if type(state) is not tuple or len(<tuple> state) != 2:
                return None
            h_0, c_0 = <tuple> state
            if h_0 is None or c_0 is None:
                return None
        elif state is not None:
            h_0 = state
        if not (
            is_exact(x, shape[0], shape[1], self.input_size, False)
            and (h_0 is None or is_exact(h_0, states, batch, self.output_size, False))
            and (c_0 is None or is_exact(c_0, states, batch, self.hidden_size, False))
        ):
            return None
        if out is None:
            shape[2] = features
            y = cnp.PyArray_EMPTY(3, shape, cnp.NPY_FLOAT32, 0)
            shape[0], shape[1], shape[2] = states, batch, self.output_size
            h_n = cnp.PyArray_EMPTY(3, shape, cnp.NPY_FLOAT32, 0)
            if has_c:
                shape[2] = self.hidden_size
                c_n = cnp.PyArray_EMPTY(3, shape, cnp.NPY_FLOAT32, 0)
            out = (y, (h_n, c_n) if has_c else h_n)
        else:
            if type(out) is not tuple or len(<tuple> out) != 2:
                return None
            y, h_n = <tuple> out
            if has_c:
                if type(h_n) is not tuple or len(<tuple> h_n) != 2:
                    return None
                h_n, c_n = <tuple> h_n
            if not (
                is_exact(y, shape[0], shape[1], features, True)
                and is_exact(h_n, states, batch, self.output_size, True)
                and (not has_c or is_exact(c_n, states, batch, self.hidden_size, True))
            ):
                return None
            written, read = (y, h_n, c_n), (x, h_0, c_0)
            for k in range(3):
                if written[k] is None:
                    continue
                for n in range(3):
                    if read[n] is not None and overlap(<cnp.ndarray> written[k], <cnp.ndarray> read[n]):
                        return None
                    if n < k and overlap(<cnp.ndarray> written[k], <cnp.ndarray> written[n]):
                        return None
        call = self.call_of(batch, seq_len, threads)
        self.place(&call, <cnp.ndarray> x, batch_first, h_0, c_0, y, h_n, c_n)
        self.run(&call)
        return out


# ---- States of many rows ----

cdef class Owner:
    """A lock that is not waited for: whoever finds it taken is told so.

    In C because a step of a small network takes hardly longer than a lock of Python's, and because no signal handler then
    comes between taking it and the block that gives it back.
    """

    cdef str what
    cdef PyThread_type_lock lock

    def __cinit__(self, str what):
        self.what, self.lock = what, PyThread_allocate_lock()
        if self.lock == NULL:
            raise MemoryError("not enough memory for a lock")

    def __dealloc__(self):
        if self.lock != NULL:
            PyThread_free_lock(self.lock)

    def __enter__(self):
        if not PyThread_acquire_lock(self.lock, NOWAIT_LOCK):
            raise ConcurrentUseError(
                f"{self.what} is in use by another thread, or by a call of this one that is not over; a {self.what}"
                " has one owner at a time"
            )

    def __exit__(self, kind, error, traceback):
        PyThread_release_lock(self.lock)


cdef class RowStates:
    """States of ``capacity`` rows of a recurrent network, which calls advance in place.

    ``rows`` of a call are the places of its rows, int64, all different (whoever calls has checked); None: all, in order.
    """

    cdef RecurrentHandle net
    cdef readonly cnp.ndarray h
    cdef readonly object c
    cdef readonly Py_ssize_t capacity
    cdef Py_ssize_t features

    def __cinit__(self, RecurrentHandle net, Py_ssize_t capacity):
        cdef cnp.npy_intp shape[3]
        self.net, self.capacity, self.features = net, capacity, net.output_size
        shape[0], shape[1], shape[2] = net.states, capacity, net.output_size
        self.h = cnp.PyArray_ZEROS(3, shape, cnp.NPY_FLOAT32, 0)
        shape[2] = net.hidden_size
        self.c = cnp.PyArray_ZEROS(3, shape, cnp.NPY_FLOAT32, 0) if net.has_c else None

    cdef c_api.frnn_recurrent_call call_of(self, Py_ssize_t batch, Py_ssize_t seq_len, rows, size_t threads):
        cdef c_api.frnn_recurrent_call call = self.net.call_of(batch, seq_len, threads)
        call.h_0 = call.h_n = floats(self.h)
        call.c_0 = call.c_n = floats(self.c)
        if rows is not None:
            call.state_rows = integers(rows)
            call.state_capacity = self.capacity
        return call

    def step(self, x, out, rows, size_t threads):
        """One step of each row: x (rows, input_size), or (input_size,) of a single row; returns y, new or ``out``.

        None: x or ``out`` is not what C takes, and nothing was done.
        """
        cdef cnp.npy_intp shape[2]
        cdef int ndim
        cdef Py_ssize_t batch
        cdef c_api.frnn_recurrent_call call
        if not cnp.PyArray_CheckExact(x):
            return None
        ndim = cnp.PyArray_NDIM(<cnp.ndarray> x)
        if ndim < 1 or ndim > 2 or cnp.PyArray_TYPE(<cnp.ndarray> x) != cnp.NPY_FLOAT32 or not cnp.PyArray_ISCARRAY_RO(<cnp.ndarray> x):
            return None
        batch = 1 if ndim == 1 else cnp.PyArray_DIM(<cnp.ndarray> x, 0)
        if batch != (self.capacity if rows is None else cnp.PyArray_DIM(<cnp.ndarray> rows, 0)):
            return None
        if cnp.PyArray_DIM(<cnp.ndarray> x, ndim - 1) != <Py_ssize_t> self.net.input_size:
            return None
        shape[0], shape[1] = batch, self.features
        if out is None:
            out = cnp.PyArray_EMPTY(ndim, shape + 2 - ndim, cnp.NPY_FLOAT32, 0)
        elif not (cnp.PyArray_CheckExact(out) and cnp.PyArray_NDIM(<cnp.ndarray> out) == ndim
                  and cnp.PyArray_TYPE(<cnp.ndarray> out) == cnp.NPY_FLOAT32 and cnp.PyArray_ISCARRAY(<cnp.ndarray> out)
                  and cnp.PyArray_SIZE(<cnp.ndarray> out) == batch * self.features
                  and cnp.PyArray_DIM(<cnp.ndarray> out, ndim - 1) == self.features
                  and not overlap(<cnp.ndarray> out, <cnp.ndarray> x)):
            return None
        call = self.call_of(batch, 1, rows, threads)
        call.x, call.y = floats(x), floats(out)
        call.x_batch_stride, call.y_batch_stride = self.net.input_size, self.features
        self.net.run(&call)
        return out

    def chunk(self, cnp.ndarray x, y, rows, size_t threads):
        """Several steps of each row: x (rows, seq_len, input_size) into y (rows, seq_len, features), None: not wanted."""
        cdef Py_ssize_t batch = cnp.PyArray_DIM(x, 0), seq_len = cnp.PyArray_DIM(x, 1)
        cdef c_api.frnn_recurrent_call call = self.call_of(batch, seq_len, rows, threads)
        call.x, call.y = floats(x), NULL if y is None else floats(y)
        call.x_time_stride, call.y_time_stride = self.net.input_size, self.features
        call.x_batch_stride, call.y_batch_stride = seq_len * call.x_time_stride, seq_len * call.y_time_stride
        self.net.run(&call)

    def advance(self, list x, y, positions, cnp.ndarray lengths, Py_ssize_t seq_len, rows, size_t threads):
        """Steps of rows that each lie somewhere: `lengths`, at most `seq_len`, of the arrays x (any, input_size), from the
        step `positions` of each on (None: the first), into the same steps of the arrays y (any, features); None: not
        wanted."""
        cdef Py_ssize_t batch = len(x), k
        cdef ptrdiff_t at
        cdef const int64_t *begins = integers(positions)
        cdef c_api.frnn_recurrent_call call
        cdef float **pointers
        if batch == 0 or seq_len == 0:
            return
        pointers = <float **> calloc(2 * batch, sizeof(float *))
        if pointers == NULL:
            raise MemoryError("not enough memory for the rows of a call")
        try:
            for k in range(batch):
                at = begins[k] if begins != NULL else 0
                pointers[k] = floats(x[k]) + at * <ptrdiff_t> self.net.input_size
                if y is not None:
                    pointers[batch + k] = floats(y[k]) + at * self.features
            call = self.call_of(batch, seq_len, rows, threads)
            call.x, call.x_rows = pointers[0], <const float **> pointers
            if y is not None:
                call.y, call.y_rows = pointers[batch], pointers + batch
            call.x_time_stride, call.y_time_stride = self.net.input_size, self.features
            call.lengths = integers(lengths)
            self.net.run(&call)
        finally:
            free(pointers)


def gather_steps(list arrays, cnp.ndarray begins, Py_ssize_t count, cnp.ndarray out):
    """out[k] = arrays[k][begins[k] : begins[k] + count], for contiguous arrays of one dtype."""
    cdef const int64_t *first = integers(begins)
    cdef Py_ssize_t k, size = 0 if not len(arrays) else cnp.PyArray_NBYTES(out) // len(arrays)
    cdef char *to = cnp.PyArray_BYTES(out)
    for k in range(len(arrays)):
        if size:
            memcpy(to + k * size, cnp.PyArray_BYTES(<cnp.ndarray> arrays[k]) + first[k] * (size // count), size)


def scatter_steps(cnp.ndarray source, list arrays, cnp.ndarray begins, Py_ssize_t count):
    """arrays[k][begins[k] : begins[k] + count] = source[k], for contiguous arrays of one dtype."""
    cdef const int64_t *first = integers(begins)
    cdef Py_ssize_t k, size = 0 if not len(arrays) else cnp.PyArray_NBYTES(source) // len(arrays)
    cdef const char *of = cnp.PyArray_BYTES(source)
    for k in range(len(arrays)):
        if size:
            memcpy(cnp.PyArray_BYTES(<cnp.ndarray> arrays[k]) + first[k] * (size // count), of + k * size, size)


def find_rows(ids, cnp.ndarray generations, cnp.ndarray stamps, int64_t stamp, cnp.ndarray rows):
    """Fill in the row of each handle; -1, or the index of one that is not open, or count + the index of a repeated one.

    A handle is a row and, in its upper half, the generation that the row has while it is open: above 0.
    """
    cdef Py_ssize_t k, count = cnp.PyArray_DIM(rows, 0), capacity = cnp.PyArray_DIM(generations, 0)
    cdef int64_t handle, row
    cdef const int64_t *handles = NULL
    cdef const int64_t *opened = integers(generations)
    cdef int64_t *seen = integers(stamps)
    cdef int64_t *found = integers(rows)
    if cnp.PyArray_Check(ids):
        handles = integers(ids)
    for k in range(count):
        handle = handles[k] if handles != NULL else PyNumber_AsSsize_t((<list> ids)[k], OverflowError)
        row = <uint32_t> handle
        if handle < 0 or row >= capacity or opened[row] != handle >> 32:
            return k
        if seen[row] == stamp:
            return count + k
        seen[row] = stamp
        found[k] = row
    return -1


# ---- Dense ----

cdef class DenseHandle:
    """A packed dense layer."""

    cdef c_api.frnn_dense *layer
    cdef size_t input_size, output_size
    cdef readonly str backend

    def __cinit__(self, cnp.ndarray weight, bias, tuple act, str backend):
        self.backend = backend
        self.output_size, self.input_size = cnp.PyArray_DIM(weight, 0), cnp.PyArray_DIM(weight, 1)
        check(c_api.frnn_dense_create(&self.layer, self.input_size, self.output_size, floats(weight), floats(bias),
                                      activation(act), BACKENDS[backend]))

    def __dealloc__(self):
        c_api.frnn_dense_free(self.layer)

    @property
    def nbytes(self):
        """Bytes of packed weights."""
        return c_api.frnn_dense_bytes(self.layer)

    def forward(self, Py_ssize_t rows, cnp.ndarray x, cnp.ndarray y, size_t threads):
        """y = activation(x W^T + b) for `rows` rows."""
        cdef const float *from_x = floats(x)
        cdef float *to_y = floats(y)
        cdef void *memory = scratch(c_api.frnn_dense_scratch(self.layer, rows, threads))
        cdef c_api.c_bool finished
        with nogil:
            finished = c_api.frnn_dense_forward(
                self.layer, rows, from_x, self.input_size, to_y, self.output_size, threads, memory, poll_signals, NULL
            )
        return None if finished else raise_pending()


# ---- Elements and rows ----

cdef class RowKernels:
    """Functions of elements and rows, of the instruction set in use when this was made."""

    cdef const c_api.frnn_kernels *kernels
    cdef readonly str isa

    def __cinit__(self):
        self.kernels = c_api.frnn_kernels_selected()
        self.isa = isa()

    def activate(self, tuple act, cnp.ndarray x, cnp.ndarray y):
        """y = activation(x)"""
        cdef c_api.frnn_activation a = activation(act)
        cdef const float *from_x = floats(x)
        cdef float *to_y = floats(y)
        cdef size_t n = cnp.PyArray_SIZE(x)
        with nogil:
            c_api.frnn_activate(self.kernels, a, n, from_x, to_y)

    def softmax(self, Py_ssize_t rows, Py_ssize_t n, cnp.ndarray x, cnp.ndarray y, bint logarithm):
        """y = softmax(x) over each row of n"""
        cdef const float *from_x = floats(x)
        cdef float *to_y = floats(y)
        with nogil:
            c_api.frnn_softmax(self.kernels, rows, n, from_x, to_y, logarithm)

    def layer_norm(self, Py_ssize_t rows, Py_ssize_t n, cnp.ndarray x, weight, bias, float eps, cnp.ndarray y):
        """y = (x - mean) / sqrt(var + eps) * weight + bias over each row of n"""
        cdef const float *from_x = floats(x)
        cdef const float *w = floats(weight)
        cdef const float *b = floats(bias)
        cdef float *to_y = floats(y)
        with nogil:
            c_api.frnn_layer_norm(self.kernels, rows, n, from_x, w, b, eps, to_y)

    def scale_shift(self, Py_ssize_t rows, Py_ssize_t n, cnp.ndarray x, cnp.ndarray scale, cnp.ndarray shift, cnp.ndarray y):
        """y = x * scale + shift over each row of n"""
        cdef const float *from_x = floats(x)
        cdef const float *by = floats(scale)
        cdef const float *plus = floats(shift)
        cdef float *to_y = floats(y)
        with nogil:
            c_api.frnn_scale_shift(self.kernels, rows, n, from_x, by, plus, to_y)


# ---- Programs ----

cdef c_api.frnn_operand operand(value):
    cdef c_api.frnn_operand o
    o.slot, o.offset = (c_api.FRNN_NO_SLOT, 0) if value is None else value
    return o


cdef class Program:
    """The steps of a model for one set of shapes, run over a table of pointers.

    ``steps`` are dicts of the fields of frnn_program_step; operands are (slot, offset), loops are lists of (size, y stride,
    a stride, b stride), and ``layer`` is a RecurrentHandle or DenseHandle.  Slots are, in order: the block of
    intermediate results, the constants, the inputs, the outputs, the ``shared`` arrays, which are constants too.
    """

    cdef c_api.frnn_program_step *steps
    cdef readonly Py_ssize_t count
    cdef size_t slots
    cdef double flops
    cdef const c_api.frnn_kernels *kernels
    cdef list layers
    cdef readonly cnp.ndarray constants
    cdef readonly list shared

    def __cinit__(self, list steps, cnp.ndarray constants, size_t inputs, size_t outputs, list shared, double flops,
                  RowKernels kernels):
        cdef Py_ssize_t k
        self.kernels = kernels.kernels
        self.count, self.slots, self.flops = len(steps), 2 + inputs + outputs + len(shared), flops
        self.constants, self.shared = constants, shared
        self.layers = [step["layer"] for step in steps if "layer" in step]
        self.steps = <c_api.frnn_program_step *> calloc(max(self.count, 1), sizeof(c_api.frnn_program_step))
        if self.steps == NULL:
            raise MemoryError("not enough memory for the steps of a model")
        for k in range(self.count):
            self.fill(&self.steps[k], steps[k])

    def __dealloc__(self):
        free(self.steps)

    cdef int fill(self, c_api.frnn_program_step *step, dict given) except -1:
        cdef size_t axis
        step.kind = STEP_KINDS[given["kind"]]
        step.y, step.y_2, step.y_3 = operand(given.get("y")), operand(given.get("y_2")), operand(given.get("y_3"))
        step.a, step.b, step.c = operand(given.get("a")), operand(given.get("b")), operand(given.get("c"))
        loops = given.get("loops", ())
        step.loops.axes = len(loops)
        assert step.loops.axes <= c_api.FRNN_MAX_AXES
        for axis, (size, y, a, b) in enumerate(loops):
            step.loops.size[axis], step.loops.y[axis], step.loops.a[axis], step.loops.b[axis] = size, y, a, b
        step.rows, step.n, step.k = given.get("rows", 0), given.get("n", 0), given.get("k", 0)
        step.a_row, step.b_row, step.b_column, step.y_row = (
            given.get("a_row", 0), given.get("b_row", 0), given.get("b_column", 0), given.get("y_row", 0)
        )
        step.value, step.logarithm, step.chain = given.get("value", 0.0), given.get("logarithm", False), given.get("chain", 0)
        if "binary" in given:
            step.binary = BINARY_KINDS[given["binary"]]
        if "reduction" in given:
            step.reduction = REDUCTION_KINDS[given["reduction"]]
        if "activation" in given:
            step.activation = activation(given["activation"])
        if given["kind"] == "dense":
            step.dense = (<DenseHandle> given["layer"]).layer
        if given["kind"] == "recurrent":
            step.recurrent = (<RecurrentHandle> given["layer"]).net
            step.call = (<RecurrentHandle> given["layer"]).call_of(given["batch"], given["seq_len"], 1)
            step.call.x_batch_stride, step.call.x_time_stride = given["x_strides"]
            step.call.y_batch_stride, step.call.y_time_stride = given["y_strides"]
        return 0

    @property
    def nbytes(self):
        """Bytes of the steps and of the constants among them."""
        return (sizeof(c_api.frnn_program_step) + sizeof(void *)) * self.count + cnp.PyArray_NBYTES(self.constants)

    def scratch(self, size_t threads, Py_ssize_t first, Py_ssize_t last):
        """Bytes that a run of these steps lends to them."""
        return c_api.frnn_program_scratch(self.kernels, self.steps + first, last - first, threads)

    def run(self, cnp.ndarray block, list inputs, list outputs, size_t threads, Py_ssize_t first, Py_ssize_t last, size_t size):
        """Run the steps first .. last - 1, which need `size` bytes of scratch."""
        cdef float *at[64]
        cdef float **table = at
        cdef size_t k = 2
        cdef char *memory = <char *> scratch(size + self.slots * sizeof(float *))
        cdef c_api.c_bool finished
        if self.slots > 64:
            table = <float **> (memory + size)
        table[0], table[1] = floats(block), floats(self.constants)
        for array in inputs:
            table[k] = floats(array)
            k += 1
        for array in outputs:
            table[k] = floats(array)
            k += 1
        for array in self.shared:
            table[k] = floats(array)
            k += 1
        if self.flops < KEEP_GIL_FLOPS:
            finished = c_api.frnn_program_run(self.kernels, self.steps + first, last - first, table, threads, memory, NULL, NULL)
        else:
            with nogil:
                finished = c_api.frnn_program_run(
                    self.kernels, self.steps + first, last - first, table, threads, memory, poll_signals, NULL
                )
        return None if finished else raise_pending()
