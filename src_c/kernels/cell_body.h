/* cell_body.h: one time step of each cell: recurrent product and gate maths in one pass, while the totals are in registers. */

/* Totals begin with what the input gave, and the recurrent part where BLAS made it. */
INLINE void start_gates(const frnn_step_args *s, size_t row, size_t rows, size_t panel, const int panels, const int nv, vf *total)
{
    UNROLL_FOR (int q = 0; q < panels; q++)
        for (size_t r = 0; r < rows; r++) {
            size_t at = (panel + (size_t)q) * s->input.panel_stride + (row + r) * s->input.row_stride;
            vf *t = total + ((size_t)q * rows + r) * (size_t)nv;
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

#define STEP_OPS(name, gates, width, start, finish) PANEL_OPS(name, frnn_step_args, step_operand, gates, width, start, finish)

/* Run `body` for each vector of units: `t` are its totals, GATES of them `width` apart, `unit` and `at` say where it
 * stands in a row and in the arrays of states, `input` where in the input part. */
#define FOR_UNITS(GATES, ...)                                                                                         \
    UNROLL_FOR (int q = 0; q < panels; q++)                                                                           \
        for (size_t r = 0; r < rows; r++)                                                                             \
            UNROLL_FOR (int vector = 0; vector < width; vector++) {                                                   \
                vf *t = total + ((size_t)q * rows + r) * (size_t)((GATES) * width) + vector;                          \
                const size_t its_panel = panel + (size_t)q, its_row = row + r;                                        \
                const size_t unit = (its_panel * s->hidden->width + (size_t)vector) * VLEN;                           \
                const size_t at = its_row * s->stride + unit;                                                         \
                const float *input = s->input.at + its_panel * s->input.panel_stride + its_row * s->input.row_stride; \
                (void)unit, (void)at, (void)input;                                                                    \
                __VA_ARGS__;                                                                                          \
            }

/* activation(clip(x)) of a gate that is not the standard one. */
static __attribute__((noinline)) vf gate_variant(const frnn_cell *cell, frnn_activation activation, vf x)
{
    return v_activate(activation, v_clip(x, -cell->clip, cell->clip));
}

/* i, f, g, o = totals with everything that a published variant adds; `unit` finds the peephole weights. */
static __attribute__((noinline)) void lstm_variant(const frnn_cell *cell, size_t padded, size_t unit, vf i, vf f, vf g, vf o, float *c,
                                                   float *out)
{
    const float *peephole = cell->peephole;
    vf c_old = v_load(c);
    if (peephole) {
        i = v_fma(v_load(peephole + unit), c_old, i);
        f = v_fma(v_load(peephole + padded + unit), c_old, f);
    }
    f = gate_variant(cell, cell->gate, f);
    i = cell->coupled ? 1.0f - f : gate_variant(cell, cell->gate, i);
    vf c_new = v_fma(f, c_old, i * gate_variant(cell, cell->candidate, g));
    c_new = v_clip(c_new, -cell->cell_clip, cell->cell_clip);
    if (peephole) o = v_fma(v_load(peephole + 2 * padded + unit), c_new, o);
    v_store(c, c_new);
    v_store(out, gate_variant(cell, cell->gate, o) * v_activate(cell->hidden, c_new));
}

INLINE void lstm_start(const frnn_step_args *s, size_t row, size_t rows, size_t panel, const int panels, const int width, vf *total)
{
    start_gates(s, row, rows, panel, panels, 4 * width, total);
}

INLINE void lstm_finish(const frnn_step_args *s, size_t row, size_t rows, size_t panel, const int panels, const int width, vf *total)
{
    if (s->cell->standard) {
        /* c = f c + i g for all rows, then h = o tanh(c): the two halves of one row would wait for each other. */
        FOR_UNITS(4, {
            quotient g = v_tanh_quotient(t[2]);
            vf taken = g.numerator / (v_sigmoid_denominator(t[0]) * g.denominator);
            t[0] = v_load(s->c + at) / v_sigmoid_denominator(t[1]) + taken;
            v_store(s->c + at, t[0]);
        })
        FOR_UNITS(4, {
            quotient shown = v_tanh_quotient(t[0]);
            v_store(s->out + at, shown.numerator / (v_sigmoid_denominator(t[3]) * shown.denominator));
        })
    } else {
        FOR_UNITS(4, lstm_variant(s->cell, frnn_padded(s->hidden), unit, t[0], t[1], t[2], t[3], s->c + at, s->out + at))
    }
}

STEP_OPS(lstm, 4, 1, lstm_start, lstm_finish)

static void lstm_step(const frnn_step_args *s)
{
    static const panel_ops ops[] = {PANEL_OPS_OF(lstm, 4)};
    walk_step(s, ops, true);
}

/* GRU, reset after the product: the candidate keeps two totals, as r multiplies only the recurrent one. */
INLINE void gru_start(const frnn_step_args *s, size_t row, size_t rows, size_t panel, const int panels, const int width, vf *total)
{
    start_gates(s, row, rows, panel, panels, 3 * width, total);
    FOR_UNITS(3, t[2] = v_load(s->recurrent ? s->recurrent + (input - s->input.at) + 2 * VLEN
                                            : s->hidden->bias + its_panel * 3 * VLEN + 2 * VLEN))
}

INLINE void gru_finish(const frnn_step_args *s, size_t row, size_t rows, size_t panel, const int panels, const int width, vf *total)
{
    const frnn_cell *cell = s->cell;
    if (cell->standard) {
        FOR_UNITS(3, {
            t[2] = t[2] / v_sigmoid_denominator(t[0]) + v_load(input + 2 * VLEN);
            t[1] = v_sigmoid_denominator(t[1]);
        })
        FOR_UNITS(3, {
            vf n = v_tanh(t[2]);
            v_store(s->out + at, (v_load(s->h + at) - n) / t[1] + n);
        })
    } else {
        FOR_UNITS(3, {
            vf r_gate = gate_variant(cell, cell->gate, t[0]), z = gate_variant(cell, cell->gate, t[1]);
            vf n = gate_variant(cell, cell->candidate, v_fma(r_gate, t[2], v_load(input + 2 * VLEN)));
            v_store(s->out + at, v_fma(z, v_load(s->h + at) - n, n));
        })
    }
}

STEP_OPS(gru, 3, 1, gru_start, gru_finish)

static void gru_step(const frnn_step_args *s)
{
    static const panel_ops ops[] = {PANEL_OPS_OF(gru, 3)};
    walk_step(s, ops, false); /* the candidate's two totals are kept apart */
}

/* GRU, reset before the product: all of r is needed first, so r and z are one matrix and n is another. */
INLINE void gru_reset_start(const frnn_step_args *s, size_t row, size_t rows, size_t panel, const int panels, const int width, vf *total)
{
    start_gates(s, row, rows, panel, panels, 2 * width, total);
}

INLINE void gru_reset_finish(const frnn_step_args *s, size_t row, size_t rows, size_t panel, const int panels, const int width, vf *total)
{
    const frnn_cell *cell = s->cell;
    if (cell->standard) {
        FOR_UNITS(2, {
            v_store(s->z + at, v_sigmoid(t[width]));
            v_store(s->out + at, v_load(s->h + at) / v_sigmoid_denominator(t[0]));
        })
    } else {
        FOR_UNITS(2, {
            v_store(s->z + at, gate_variant(cell, cell->gate, t[width]));
            v_store(s->out + at, gate_variant(cell, cell->gate, t[0]) * v_load(s->h + at));
        })
    }
}

STEP_OPS(gru_reset_1, 2, 1, gru_reset_start, gru_reset_finish)
STEP_OPS(gru_reset_2, 2, 2, gru_reset_start, gru_reset_finish)

static void gru_reset(const frnn_step_args *s)
{
    static const panel_ops ops[] = {PANEL_OPS_OF(gru_reset_1, 2), PANEL_OPS_OF(gru_reset_2, 4)};
    walk_step(s, ops, true);
}

/* Cells of one gate in a matrix of its own. */
INLINE void gate_start(const frnn_step_args *s, size_t row, size_t rows, size_t panel, const int panels, const int width, vf *total)
{
    start_gates(s, row, rows, panel, panels, width, total);
}

INLINE void gru_candidate_finish(const frnn_step_args *s, size_t row, size_t rows, size_t panel, const int panels, const int width,
                                 vf *total)
{
    const frnn_cell *cell = s->cell;
    if (cell->standard) {
        FOR_UNITS(1, {
            vf n = v_tanh(t[0]);
            v_store(s->out + at, v_fma(v_load(s->z + at), v_load(s->h + at) - n, n));
        })
    } else {
        FOR_UNITS(1, {
            vf n = gate_variant(cell, cell->candidate, t[0]);
            v_store(s->out + at, v_fma(v_load(s->z + at), v_load(s->h + at) - n, n));
        })
    }
}

STEP_OPS(gru_candidate_1, 1, 1, gate_start, gru_candidate_finish)
STEP_OPS(gru_candidate_2, 1, 2, gate_start, gru_candidate_finish)
STEP_OPS(gru_candidate_3, 1, 3, gate_start, gru_candidate_finish)
STEP_OPS(gru_candidate_4, 1, 4, gate_start, gru_candidate_finish)

static void gru_candidate(const frnn_step_args *s)
{
    static const panel_ops ops[] = {PANEL_OPS_OF(gru_candidate_1, 1), PANEL_OPS_OF(gru_candidate_2, 2), PANEL_OPS_OF(gru_candidate_3, 3),
                                    PANEL_OPS_OF(gru_candidate_4, 4)};
    walk_step(s, ops, true);
}

INLINE void rnn_finish(const frnn_step_args *s, size_t row, size_t rows, size_t panel, const int panels, const int width, vf *total)
{
    if (s->cell->standard) {
        FOR_UNITS(1, v_store(s->out + at, v_tanh(t[0])))
    } else {
        FOR_UNITS(1, v_store(s->out + at, gate_variant(s->cell, s->cell->candidate, t[0])))
    }
}

STEP_OPS(rnn_1, 1, 1, gate_start, rnn_finish)
STEP_OPS(rnn_2, 1, 2, gate_start, rnn_finish)
STEP_OPS(rnn_3, 1, 3, gate_start, rnn_finish)
STEP_OPS(rnn_4, 1, 4, gate_start, rnn_finish)

static void rnn_step(const frnn_step_args *s)
{
    static const panel_ops ops[] = {PANEL_OPS_OF(rnn_1, 1), PANEL_OPS_OF(rnn_2, 2), PANEL_OPS_OF(rnn_3, 3), PANEL_OPS_OF(rnn_4, 4)};
    walk_step(s, ops, true);
}
