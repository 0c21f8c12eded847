/* cell_body.h: one time step of each cell: recurrent product and gate maths in one pass, while the totals are in registers. */

/* Totals begin with what the input gave, and the recurrent part where BLAS made it. */
INLINE void start_gates(const frnn_step_args *s, size_t row, size_t rows, size_t panel, const int nv, vf *total)
{
    for (size_t r = 0; r < rows; r++) {
        size_t at = panel * s->input.panel_stride + (row + r) * s->input.row_stride;
        vf *t = total + r * (size_t)nv;
        UNROLL_FOR (int j = 0; j < nv; j++) {
            t[j] = v_load(s->input.at + at + (size_t)j * VLEN);
            if (s->recurrent) t[j] += v_load(s->recurrent + at + (size_t)j * VLEN);
        }
    }
}

/* Where BLAS made the recurrent part, nothing is left to add. */
static inline operand step_operand(const frnn_step_args *s)
{
    return (operand){s->hidden, s->v, s->v_stride, s->rows, s->recurrent ? 0 : s->hidden->k, s->input, {NULL, 0, 0}};
}

/* `starts`: totals start from the input part as it is, else as the kernel's start() says. */
INLINE void walk_step(const frnn_step_args *s, const panel_ops *ops, bool starts)
{
    if (s->rows == 1) {
        walk_row(s, s->hidden, s->panel_begin, s->panel_end, s->backwards, ops);
        return;
    }
    operand x = step_operand(s);
    if (!starts) x.from.at = NULL;
    walk_rows(s, &x, s->panel_begin, s->panel_end, s->backwards, ops);
}

#define STEP_OPS(name, gates, width, start, finish) PANEL_OPS(name, frnn_step_args, step_operand, gates, width, width, start, finish)

/* Gate maths is written once, for whole vectors.  In a half panel (width 0) a vector holds the units of two rows: one in
 * its lower half, the next in its upper half; the last of an odd number of rows stands in both. */
#if VLEN == 16
#define HALF_OPS(name, gates, start, finish) \
    PANEL_OPS(name##_half, frnn_step_args, step_operand, gates, FRNN_MAX_WIDTH / (gates), 0, start, finish)
#define HALF_OPS_OF(name, nv) PANEL_OPS_OF(name##_half, nv)

/* `apart`: floats from one row to the other. */
INLINE vf load_units(const int width, const float *p, size_t apart) { return width ? v_load(p) : v_load_halves(p, p + apart); }

INLINE void store_units(const int width, float *p, size_t apart, vf x)
{
    if (width)
        v_store(p, x);
    else
        v_store_halves(p, p + apart, x);
}

/* Totals of a half panel, in place: [row][pair of gates] become [pair of rows][gate]. */
INLINE void pair_rows(const int gates, const int width, size_t rows, vf *total)
{
    if (width) return;
    const int nv = ROW_VECTORS(gates, 0);
    for (size_t r = 0; r < rows; r += 2) {
        vf *t = total + r * nv, pair[FRNN_MAX_WIDTH];
        const vf *u = r + 1 < rows ? t + nv : t;
        UNROLL_FOR (int g = 0; g < gates; g++) pair[g] = g % 2 ? v_high_halves(t[g / 2], u[g / 2]) : v_low_halves(t[g / 2], u[g / 2]);
        UNROLL_FOR (int g = 0; g < gates; g++) t[g] = pair[g];
    }
}
#else
#define HALF_OPS(name, gates, start, finish)
#define HALF_OPS_OF(name, nv) {0}
INLINE vf load_units(const int width, const float *p, size_t apart) { return (void)width, (void)apart, v_load(p); }
INLINE void store_units(const int width, float *p, size_t apart, vf x) { (void)width, (void)apart, v_store(p, x); }
INLINE void pair_rows(const int gates, const int width, size_t rows, vf *total) { (void)gates, (void)width, (void)rows, (void)total; }
#endif

/* Run `body` for each vector of units: `t` are its totals, GATES of them `gate` apart, `unit` and `at` say where it
 * stands in a row and in the arrays of states, `input` where in the input part; `next` is 1 where another row follows.
 * LOAD and STORE reach the states. */
#define FOR_UNITS(GATES, ...)                                                           \
    {                                                                                   \
        const int gate = width ? width : 1;                                             \
        for (size_t r = 0; r < rows; r += width ? 1 : 2)                                \
            UNROLL_FOR (int vector = 0; vector < gate; vector++) {                      \
                vf *t = total + r * ROW_VECTORS(GATES, width) + vector;                 \
                const size_t its_row = row + r, next = r + 1 < rows;                    \
                const size_t unit = (panel * s->hidden->width + (size_t)vector) * VLEN; \
                const size_t at = its_row * s->stride + unit;                           \
                const float *input = totals_at(&s->input, panel, its_row);              \
                (void)next, (void)unit, (void)at, (void)input;                          \
                __VA_ARGS__;                                                            \
            }                                                                           \
    }
#define LOAD(state) load_units(width, (state) + at, next * s->stride)
#define STORE(state, x) store_units(width, (state) + at, next * s->stride, x)

/* activation(clip(x)) of a gate that is not the standard one. */
static __attribute__((noinline)) vf gate_variant(const frnn_cell *cell, frnn_activation activation, vf x)
{
    return v_activate(activation, v_clip(x, -cell->clip, cell->clip));
}

/* i, f, g, o = totals with everything that a published variant adds; `unit` finds the peephole weights. */
static __attribute__((noinline)) void lstm_variant(const frnn_step_args *s, const int width, size_t unit, size_t at, size_t next,
                                                   const vf *t)
{
    const frnn_cell *cell = s->cell;
    const size_t padded = frnn_padded(s->hidden);
    const float *peephole = cell->peephole ? cell->peephole + unit : NULL;
    vf i = t[0], f = t[1], g = t[2], o = t[3], c_old = LOAD(s->c);
    if (peephole) {
        i = v_fma(load_units(width, peephole, 0), c_old, i);
        f = v_fma(load_units(width, peephole + padded, 0), c_old, f);
    }
    f = gate_variant(cell, cell->gate, f);
    i = cell->coupled ? 1.0f - f : gate_variant(cell, cell->gate, i);
    vf c_new = v_fma(f, c_old, i * gate_variant(cell, cell->candidate, g));
    c_new = v_clip(c_new, -cell->cell_clip, cell->cell_clip);
    if (peephole) o = v_fma(load_units(width, peephole + 2 * padded, 0), c_new, o);
    STORE(s->c, c_new);
    STORE(s->out, gate_variant(cell, cell->gate, o) * v_activate(cell->hidden, c_new));
}

INLINE void lstm_start(const frnn_step_args *s, size_t row, size_t rows, size_t panel, const int width, vf *total)
{
    start_gates(s, row, rows, panel, ROW_VECTORS(4, width), total);
}

INLINE void lstm_finish(const frnn_step_args *s, size_t row, size_t rows, size_t panel, const int width, vf *total)
{
    pair_rows(4, width, rows, total);
    if (s->cell->standard) {
        /* c = f c + i g for all rows, then h = o tanh(c): the two halves of one row would wait for each other. */
        FOR_UNITS(4, {
            quotient g = v_tanh_quotient(t[2]);
            vf taken = g.numerator / (v_sigmoid_denominator(t[0]) * g.denominator);
            t[0] = LOAD(s->c) / v_sigmoid_denominator(t[1]) + taken;
            STORE(s->c, t[0]);
        })
        FOR_UNITS(4, {
            quotient shown = v_tanh_quotient(t[0]);
            STORE(s->out, shown.numerator / (v_sigmoid_denominator(t[3]) * shown.denominator));
        })
    } else {
        FOR_UNITS(4, lstm_variant(s, width, unit, at, next, t))
    }
}

STEP_OPS(lstm, 4, 1, lstm_start, lstm_finish)
HALF_OPS(lstm, 4, lstm_start, lstm_finish)

static void lstm_step(const frnn_step_args *s)
{
    static const panel_ops ops[] = {HALF_OPS_OF(lstm, 2), PANEL_OPS_OF(lstm, 4)};
    walk_step(s, ops, true);
}

/* GRU, reset after the product: the candidate keeps two totals, as r multiplies only the recurrent one. */
INLINE void gru_start(const frnn_step_args *s, size_t row, size_t rows, size_t panel, const int width, vf *total)
{
    const int nv = ROW_VECTORS(3, width), n = (nv - 1) * VLEN;
    start_gates(s, row, rows, panel, nv, total);
    for (size_t r = 0; r < rows; r++) {
        const size_t at = panel * s->input.panel_stride + (row + r) * s->input.row_stride;
        total[(r + 1) * nv - 1] = v_load(s->recurrent ? s->recurrent + at + n : s->hidden->bias + panel * 3 * VLEN + n);
    }
}

INLINE void gru_finish(const frnn_step_args *s, size_t row, size_t rows, size_t panel, const int width, vf *total)
{
    const frnn_cell *cell = s->cell;
    const size_t n_input = (ROW_VECTORS(3, width) - 1) * VLEN;
    pair_rows(3, width, rows, total);
    if (cell->standard) {
        FOR_UNITS(3, {
            t[2] = t[2] / v_sigmoid_denominator(t[0]) + load_units(width, input + n_input, next * s->input.row_stride);
            t[1] = v_sigmoid_denominator(t[1]);
        })
        FOR_UNITS(3, {
            vf n = v_tanh(t[2]);
            STORE(s->out, (LOAD(s->h) - n) / t[1] + n);
        })
    } else {
        FOR_UNITS(3, {
            vf r_gate = gate_variant(cell, cell->gate, t[0]), z = gate_variant(cell, cell->gate, t[1]);
            vf n_total = v_fma(r_gate, t[2], load_units(width, input + n_input, next * s->input.row_stride));
            vf n = gate_variant(cell, cell->candidate, n_total);
            STORE(s->out, v_fma(z, LOAD(s->h) - n, n));
        })
    }
}

STEP_OPS(gru, 3, 1, gru_start, gru_finish)
HALF_OPS(gru, 3, gru_start, gru_finish)

static void gru_step(const frnn_step_args *s)
{
    static const panel_ops ops[] = {HALF_OPS_OF(gru, 2), PANEL_OPS_OF(gru, 3)};
    walk_step(s, ops, false); /* the candidate's two totals are kept apart */
}

/* GRU, reset before the product: all of r is needed first, so r and z are one matrix and n is another. */
INLINE void gru_reset_start(const frnn_step_args *s, size_t row, size_t rows, size_t panel, const int width, vf *total)
{
    start_gates(s, row, rows, panel, ROW_VECTORS(2, width), total);
}

INLINE void gru_reset_finish(const frnn_step_args *s, size_t row, size_t rows, size_t panel, const int width, vf *total)
{
    const frnn_cell *cell = s->cell;
    pair_rows(2, width, rows, total);
    if (cell->standard) {
        FOR_UNITS(2, {
            STORE(s->z, v_sigmoid(t[gate]));
            STORE(s->out, LOAD(s->h) / v_sigmoid_denominator(t[0]));
        })
    } else {
        FOR_UNITS(2, {
            STORE(s->z, gate_variant(cell, cell->gate, t[gate]));
            STORE(s->out, gate_variant(cell, cell->gate, t[0]) * LOAD(s->h));
        })
    }
}

STEP_OPS(gru_reset_1, 2, 1, gru_reset_start, gru_reset_finish)
STEP_OPS(gru_reset_2, 2, 2, gru_reset_start, gru_reset_finish)
HALF_OPS(gru_reset, 2, gru_reset_start, gru_reset_finish)

static void gru_reset(const frnn_step_args *s)
{
    static const panel_ops ops[] = {HALF_OPS_OF(gru_reset, 1), PANEL_OPS_OF(gru_reset_1, 2), PANEL_OPS_OF(gru_reset_2, 4)};
    walk_step(s, ops, true);
}

/* Cells of one gate in a matrix of its own. */
INLINE void gate_start(const frnn_step_args *s, size_t row, size_t rows, size_t panel, const int width, vf *total)
{
    start_gates(s, row, rows, panel, width, total);
}

INLINE void gru_candidate_finish(const frnn_step_args *s, size_t row, size_t rows, size_t panel, const int width, vf *total)
{
    const frnn_cell *cell = s->cell;
    if (cell->standard) {
        FOR_UNITS(1, {
            vf n = v_tanh(t[0]);
            STORE(s->out, v_fma(LOAD(s->z), LOAD(s->h) - n, n));
        })
    } else {
        FOR_UNITS(1, {
            vf n = gate_variant(cell, cell->candidate, t[0]);
            STORE(s->out, v_fma(LOAD(s->z), LOAD(s->h) - n, n));
        })
    }
}

STEP_OPS(gru_candidate_1, 1, 1, gate_start, gru_candidate_finish)
STEP_OPS(gru_candidate_2, 1, 2, gate_start, gru_candidate_finish)
STEP_OPS(gru_candidate_3, 1, 3, gate_start, gru_candidate_finish)
STEP_OPS(gru_candidate_4, 1, 4, gate_start, gru_candidate_finish)

static void gru_candidate(const frnn_step_args *s)
{
    static const panel_ops ops[] = {{0},
                                    PANEL_OPS_OF(gru_candidate_1, 1),
                                    PANEL_OPS_OF(gru_candidate_2, 2),
                                    PANEL_OPS_OF(gru_candidate_3, 3),
                                    PANEL_OPS_OF(gru_candidate_4, 4)};
    walk_step(s, ops, true);
}

INLINE void rnn_finish(const frnn_step_args *s, size_t row, size_t rows, size_t panel, const int width, vf *total)
{
    if (s->cell->standard) {
        FOR_UNITS(1, STORE(s->out, v_tanh(t[0])))
    } else {
        FOR_UNITS(1, STORE(s->out, gate_variant(s->cell, s->cell->candidate, t[0])))
    }
}

STEP_OPS(rnn_1, 1, 1, gate_start, rnn_finish)
STEP_OPS(rnn_2, 1, 2, gate_start, rnn_finish)
STEP_OPS(rnn_3, 1, 3, gate_start, rnn_finish)
STEP_OPS(rnn_4, 1, 4, gate_start, rnn_finish)

static void rnn_step(const frnn_step_args *s)
{
    static const panel_ops ops[] = {{0}, PANEL_OPS_OF(rnn_1, 1), PANEL_OPS_OF(rnn_2, 2), PANEL_OPS_OF(rnn_3, 3), PANEL_OPS_OF(rnn_4, 4)};
    walk_step(s, ops, true);
}
