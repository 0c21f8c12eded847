/* cell_body.h: one time step of each cell: recurrent product and gate maths in one pass, while the totals are in registers. */

/* The totals of a tile: what the input gave, plus the recurrent product. */
INLINE void sum_gates(const frnn_step_args *s, size_t row, size_t panel, ahead next, const int panels, const int rows, const int nv,
                      vf *total)
{
    UNROLL_FOR (int q = 0; q < panels; q++)
        UNROLL_FOR (int r = 0; r < rows; r++) {
            size_t at = (panel + (size_t)q) * s->input.panel_stride + (row + (size_t)r) * s->input.row_stride;
            UNROLL_FOR (int j = 0; j < nv; j++) {
                vf t = v_load(s->input.at + at + (size_t)j * VLEN);
                if (s->recurrent) t += v_load(s->recurrent + at + (size_t)j * VLEN);
                total[(q * rows + r) * nv + j] = t;
            }
        }
    if (!s->recurrent)
        accumulate(panels, rows, nv, s->v + row * s->v_stride, s->v_stride, panel_weights(s->hidden, panel),
                   frnn_panel_row(s->hidden) * s->hidden->k, s->hidden->k, next, total);
}

/* Run `body` for each vector of units of a tile: `tile_row` and `vector` say which totals are its own, `unit` and `at`
 * where it stands in a row and in the arrays of states, `input` where in the input part. */
#define FOR_UNITS(PANELS, ROWS, WIDTH, ...)                                                                           \
    UNROLL_FOR (int q = 0; q < (PANELS); q++)                                                                         \
        UNROLL_FOR (int tile_r = 0; tile_r < (ROWS); tile_r++)                                                        \
            UNROLL_FOR (int vector = 0; vector < (WIDTH); vector++) {                                                 \
                const int tile_row = q * (ROWS) + tile_r;                                                             \
                const size_t its_panel = panel + (size_t)q, its_row = row + (size_t)tile_r;                           \
                const size_t unit = (its_panel * s->hidden->width + (size_t)vector) * VLEN;                           \
                const size_t at = its_row * s->stride + unit;                                                         \
                const float *input = s->input.at + its_panel * s->input.panel_stride + its_row * s->input.row_stride; \
                (void)vector, (void)unit, (void)at, (void)input;                                                      \
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

INLINE void lstm_tile(const frnn_step_args *s, size_t row, size_t panel, ahead next, const int panels, const int rows)
{
    vf total[MAX_TOTALS];
    sum_gates(s, row, panel, next, panels, rows, 4, total);
    if (s->cell->standard) {
        /* c = f c + i g for all rows, then h = o tanh(c): the two halves of one row would wait for each other. */
        FOR_UNITS(panels, rows, 1, {
            vf *t = total + tile_row * 4;
            quotient g = v_tanh_quotient(t[2]);
            vf taken = g.numerator / (v_sigmoid_denominator(t[0]) * g.denominator);
            t[0] = v_load(s->c + at) / v_sigmoid_denominator(t[1]) + taken;
            v_store(s->c + at, t[0]);
        })
        FOR_UNITS(panels, rows, 1, {
            const vf *t = total + tile_row * 4;
            quotient shown = v_tanh_quotient(t[0]);
            v_store(s->out + at, shown.numerator / (v_sigmoid_denominator(t[3]) * shown.denominator));
        })
    } else {
        FOR_UNITS(panels, rows, 1, {
            const vf *t = total + tile_row * 4;
            lstm_variant(s->cell, frnn_padded(s->hidden), unit, t[0], t[1], t[2], t[3], s->c + at, s->out + at);
        })
    }
}

TILES(lstm, 4, lstm_tile(args, row, panel, next, panels, rows))

static void lstm_step(const frnn_step_args *s)
{
    static const tile_set sets[] = {TILE_SET(lstm, 4)};
    run_tiles(s, s->hidden, s->rows, s->panel_begin, s->panel_end, s->backwards, sets);
}

/* GRU, reset after the product: the candidate keeps two totals, as r multiplies only the recurrent one. */
INLINE void gru_tile(const frnn_step_args *s, size_t row, size_t panel, ahead next, const int panels, const int rows)
{
    const frnn_cell *cell = s->cell;
    vf total[MAX_TOTALS];
    UNROLL_FOR (int q = 0; q < panels; q++)
        UNROLL_FOR (int r = 0; r < rows; r++) {
            size_t p = panel + (size_t)q, at = p * s->input.panel_stride + (row + (size_t)r) * s->input.row_stride;
            vf *t = total + (q * rows + r) * 3;
            UNROLL_FOR (int j = 0; j < 2; j++) {
                t[j] = v_load(s->input.at + at + (size_t)j * VLEN);
                if (s->recurrent) t[j] += v_load(s->recurrent + at + (size_t)j * VLEN);
            }
            t[2] = s->recurrent ? v_load(s->recurrent + at + 2 * VLEN) : v_load(s->hidden->bias + p * 3 * VLEN + 2 * VLEN);
        }
    if (!s->recurrent)
        accumulate(panels, rows, 3, s->v + row * s->v_stride, s->v_stride, panel_weights(s->hidden, panel),
                   frnn_panel_row(s->hidden) * s->hidden->k, s->hidden->k, next, total);
    if (cell->standard) {
        FOR_UNITS(panels, rows, 1, {
            vf *t = total + tile_row * 3;
            t[2] = t[2] / v_sigmoid_denominator(t[0]) + v_load(input + 2 * VLEN);
            t[1] = v_sigmoid_denominator(t[1]);
        })
        FOR_UNITS(panels, rows, 1, {
            const vf *t = total + tile_row * 3;
            vf n = v_tanh(t[2]);
            v_store(s->out + at, (v_load(s->h + at) - n) / t[1] + n);
        })
    } else {
        FOR_UNITS(panels, rows, 1, {
            const vf *t = total + tile_row * 3;
            vf r = gate_variant(cell, cell->gate, t[0]), z = gate_variant(cell, cell->gate, t[1]);
            vf n = gate_variant(cell, cell->candidate, v_fma(r, t[2], v_load(input + 2 * VLEN)));
            v_store(s->out + at, v_fma(z, v_load(s->h + at) - n, n));
        })
    }
}

TILES(gru, 3, gru_tile(args, row, panel, next, panels, rows))

static void gru_step(const frnn_step_args *s)
{
    static const tile_set sets[] = {TILE_SET(gru, 3)};
    run_tiles(s, s->hidden, s->rows, s->panel_begin, s->panel_end, s->backwards, sets);
}

/* GRU, reset before the product: all of r is needed first, so r and z are one matrix and n is another. */
INLINE void gru_reset_tile(const frnn_step_args *s, size_t row, size_t panel, ahead next, const int panels, const int rows, const int width)
{
    vf total[MAX_TOTALS];
    sum_gates(s, row, panel, next, panels, rows, 2 * width, total);
    const frnn_cell *cell = s->cell;
    if (cell->standard) {
        FOR_UNITS(panels, rows, width, {
            const vf *t = total + tile_row * 2 * width + vector;
            v_store(s->z + at, v_sigmoid(t[width]));
            v_store(s->out + at, v_load(s->h + at) / v_sigmoid_denominator(t[0]));
        })
    } else {
        FOR_UNITS(panels, rows, width, {
            const vf *t = total + tile_row * 2 * width + vector;
            v_store(s->z + at, gate_variant(cell, cell->gate, t[width]));
            v_store(s->out + at, gate_variant(cell, cell->gate, t[0]) * v_load(s->h + at));
        })
    }
}

TILES(gru_reset_1, 2, gru_reset_tile(args, row, panel, next, panels, rows, 1))
TILES(gru_reset_2, 4, gru_reset_tile(args, row, panel, next, panels, rows, 2))

static void gru_reset(const frnn_step_args *s)
{
    static const tile_set sets[] = {TILE_SET(gru_reset_1, 2), TILE_SET(gru_reset_2, 4)};
    run_tiles(s, s->hidden, s->rows, s->panel_begin, s->panel_end, s->backwards, sets);
}

INLINE void gru_candidate_tile(const frnn_step_args *s, size_t row, size_t panel, ahead next, const int panels, const int rows,
                               const int width)
{
    vf total[MAX_TOTALS];
    sum_gates(s, row, panel, next, panels, rows, width, total);
    const frnn_cell *cell = s->cell;
    if (cell->standard) {
        FOR_UNITS(panels, rows, width, {
            vf n = v_tanh(total[tile_row * width + vector]);
            v_store(s->out + at, v_fma(v_load(s->z + at), v_load(s->h + at) - n, n));
        })
    } else {
        FOR_UNITS(panels, rows, width, {
            vf n = gate_variant(cell, cell->candidate, total[tile_row * width + vector]);
            v_store(s->out + at, v_fma(v_load(s->z + at), v_load(s->h + at) - n, n));
        })
    }
}

TILES(gru_candidate_1, 1, gru_candidate_tile(args, row, panel, next, panels, rows, 1))
TILES(gru_candidate_2, 2, gru_candidate_tile(args, row, panel, next, panels, rows, 2))
TILES(gru_candidate_3, 3, gru_candidate_tile(args, row, panel, next, panels, rows, 3))
TILES(gru_candidate_4, 4, gru_candidate_tile(args, row, panel, next, panels, rows, 4))

static void gru_candidate(const frnn_step_args *s)
{
    static const tile_set sets[] = {TILE_SET(gru_candidate_1, 1), TILE_SET(gru_candidate_2, 2), TILE_SET(gru_candidate_3, 3),
                                    TILE_SET(gru_candidate_4, 4)};
    run_tiles(s, s->hidden, s->rows, s->panel_begin, s->panel_end, s->backwards, sets);
}

INLINE void rnn_tile(const frnn_step_args *s, size_t row, size_t panel, ahead next, const int panels, const int rows, const int width)
{
    vf total[MAX_TOTALS];
    sum_gates(s, row, panel, next, panels, rows, width, total);
    if (s->cell->standard) {
        FOR_UNITS(panels, rows, width, v_store(s->out + at, v_tanh(total[tile_row * width + vector])))
    } else {
        FOR_UNITS(panels, rows, width, v_store(s->out + at, gate_variant(s->cell, s->cell->candidate, total[tile_row * width + vector])))
    }
}

TILES(rnn_1, 1, rnn_tile(args, row, panel, next, panels, rows, 1))
TILES(rnn_2, 2, rnn_tile(args, row, panel, next, panels, rows, 2))
TILES(rnn_3, 3, rnn_tile(args, row, panel, next, panels, rows, 3))
TILES(rnn_4, 4, rnn_tile(args, row, panel, next, panels, rows, 4))

static void rnn_step(const frnn_step_args *s)
{
    static const tile_set sets[] = {TILE_SET(rnn_1, 1), TILE_SET(rnn_2, 2), TILE_SET(rnn_3, 3), TILE_SET(rnn_4, 4)};
    run_tiles(s, s->hidden, s->rows, s->panel_begin, s->panel_end, s->backwards, sets);
}
