/* product_body.h: a W^T over packed panels in the fixed order of sums (kernels.h), and the walk that all kernels share.
 *
 * Many rows: one block of k of a panel stays in L1 while all rows of a group pass it in register tiles; totals wait in
 * memory between blocks.  A tile is `rows` x `nv` vectors, both constants after inlining: 24 of 32 registers (AVX-512,
 * NEON) or 12 of 16 leave room for the weights and a broadcast.
 * One row: two panels at once, all in registers, as eight chains are needed to hide the latency of an FMA. */

#define ROW_VECTORS(gates, width) ((int)frnn_row_vectors((size_t)(gates), (size_t)(width)))

#define UNROLL_FOR _Pragma("GCC unroll 32") for

#if defined(__AVX512F__) || defined(__aarch64__)
#define MAX_ROWS(nv) ((nv) == 4 ? 6 : 8)
#else
#define MAX_ROWS(nv) ((nv) == 4 ? 3 : (nv) == 3 ? 4 : (nv) == 2 ? 6 : 8)
#endif

enum { MAX_TILE_ROWS = 8, GROUP_ROWS = 48, AHEAD = 8, CACHE_BYTES = 1 << 20 };

/* Keep a value in a register: the compiler would rather load it again for each use. */
#if defined(__x86_64__)
#define IN_REGISTER(value) __asm__("" : "+v"(value))
#elif defined(__aarch64__)
#define IN_REGISTER(value) __asm__("" : "+w"(value))
#else
#define IN_REGISTER(value) (void)0
#endif

/* Memory that tiles fetch into L2 while they run: `step` bytes for every k. */
typedef struct {
    const char *at;
    size_t step;
} ahead;

/* Rows of totals before and after a block; they may be the same. */
typedef struct {
    const float *from;
    float *to;
    size_t from_stride, to_stride;
} sums;

/* to[r][j] = from[r][j] + a[r] . w[j] over one block of k. */
INLINE void tile(const int rows, const int nv, const float *a, size_t a_stride, const float *w, size_t count, ahead next, sums s)
{
    vf part[MAX_TILE_ROWS * FRNN_MAX_WIDTH];
    UNROLL_FOR (int j = 0; j < rows * nv; j++) part[j] = (vf){0};
    for (size_t kk = 0; kk < count; kk++) {
        __builtin_prefetch(next.at, 0, 2);
        __builtin_prefetch(next.at + 64, 0, 2);
        if (next.step > 128) {
            __builtin_prefetch(next.at + 128, 0, 2);
            __builtin_prefetch(next.at + 192, 0, 2);
        }
        next.at += next.step;
        /* Few rows leave L2 no time: their weights are called before they are needed. */
        if (rows < 4)
            UNROLL_FOR (int j = 0; j < nv; j++) __builtin_prefetch(w + (size_t)(AHEAD * nv + j) * VLEN, 0, 3);
        /* The shorter side waits in registers, the longer one comes one by one. */
        vf waiting[MAX_TILE_ROWS];
        if (nv < rows) {
            UNROLL_FOR (int j = 0; j < nv; j++) waiting[j] = v_load(w + (size_t)j * VLEN);
            UNROLL_FOR (int r = 0; r < rows; r++) {
                vf value = v_set(a[(size_t)r * a_stride + kk]);
                UNROLL_FOR (int j = 0; j < nv; j++) part[r * nv + j] = v_fma(waiting[j], value, part[r * nv + j]);
            }
        } else {
            UNROLL_FOR (int r = 0; r < rows; r++) waiting[r] = v_set(a[(size_t)r * a_stride + kk]);
            UNROLL_FOR (int j = 0; j < nv; j++) {
                vf weight = v_load(w + (size_t)j * VLEN);
                IN_REGISTER(weight);
                UNROLL_FOR (int r = 0; r < rows; r++) part[r * nv + j] = v_fma(weight, waiting[r], part[r * nv + j]);
            }
        }
        w += (size_t)nv * VLEN;
    }
    UNROLL_FOR (int r = 0; r < rows; r++)
        UNROLL_FOR (int j = 0; j < nv; j++)
            v_store(s.to + (size_t)r * s.to_stride + (size_t)j * VLEN,
                    v_load(s.from + (size_t)r * s.from_stride + (size_t)j * VLEN) + part[r * nv + j]);
}

typedef void (*tile_fn)(const float *a, size_t a_stride, const float *w, size_t count, ahead next, sums s);

#define TILE_FN(nv, rows)                                                                                             \
    static void tile_##nv##_##rows(const float *a, size_t a_stride, const float *w, size_t count, ahead next, sums s) \
    {                                                                                                                 \
        if (rows <= MAX_ROWS(nv)) tile(rows, nv, a, a_stride, w, count, next, s);                                     \
    }
#define TILE_FNS(nv) TILE_FN(nv, 1) TILE_FN(nv, 2) TILE_FN(nv, 3) TILE_FN(nv, 4) TILE_FN(nv, 5) TILE_FN(nv, 6) TILE_FN(nv, 7) TILE_FN(nv, 8)
#define TILE_ROW(nv) \
    {NULL, tile_##nv##_1, tile_##nv##_2, tile_##nv##_3, tile_##nv##_4, tile_##nv##_5, tile_##nv##_6, tile_##nv##_7, tile_##nv##_8}
TILE_FNS(1)
TILE_FNS(2)
TILE_FNS(3)
TILE_FNS(4)

/* By vectors in a row of the panel, then by rows. */
static const tile_fn tiles[FRNN_MAX_WIDTH + 1][MAX_TILE_ROWS + 1] = {{NULL}, TILE_ROW(1), TILE_ROW(2), TILE_ROW(3), TILE_ROW(4)};
static const uint32_t max_rows[] = {0, MAX_ROWS(1), MAX_ROWS(2), MAX_ROWS(3), MAX_ROWS(4)};

/* One row: total[j] += a . w[j] for the `first` vectors of one panel and the `second` ones of the next, `next_panel` away. */
INLINE void accumulate_row(const int first, const int second, const float *a, const float *w, size_t next_panel, size_t k, vf *total)
{
    const float *next = w + next_panel;
    for (size_t left = k; left > 0;) {
        size_t block = left < FRNN_SUM_BLOCK ? left : FRNN_SUM_BLOCK;
        vf part[2 * FRNN_MAX_WIDTH];
        UNROLL_FOR (int j = 0; j < first + second; j++) part[j] = (vf){0};
        for (size_t kk = 0; kk < block; kk++) {
            vf value = v_set(a[kk]);
            UNROLL_FOR (int j = 0; j < first; j++) part[j] = v_fma(v_load(w + (size_t)j * VLEN), value, part[j]);
            UNROLL_FOR (int j = 0; j < second; j++) part[first + j] = v_fma(v_load(next + (size_t)j * VLEN), value, part[first + j]);
            w += (size_t)first * VLEN;
            next += (size_t)second * VLEN;
        }
        UNROLL_FOR (int j = 0; j < first + second; j++) total[j] += part[j];
        a += block;
        left -= block;
    }
}

/* What passes through a matrix: rows of a and how many of its columns (none: nothing is left to add); where totals
 * start (NULL: start() says) and where they stay (NULL: finish() takes them). */
typedef struct {
    const frnn_panels *matrix;
    const float *a;
    size_t a_stride, rows, k;
    frnn_totals from, to;
} operand;

/* What a kernel does with the totals of a panel of one width, laid as [row][gate][vector]. */
typedef struct {
    size_t nv; /* vectors in a row of the panel */
    void (*start)(const void *args, size_t row, size_t rows, size_t panel, vf *total);
    void (*finish)(const void *args, size_t row, size_t rows, size_t panel, vf *total);
    void (*one)(const void *args, size_t panel); /* one row, from start to finish */
    void (*two)(const void *args, size_t panel); /* one row, `panel` and the next; the ops are those of the next */
} panel_ops;

/* Where panel p begins: all panels before it are full. */
static inline size_t panel_floats(const frnn_panels *panels) { return frnn_panel_row(panels) * panels->k; }
static inline const float *panel_weights(const frnn_panels *panels, size_t p) { return panels->w + p * panel_floats(panels); }

static inline float *totals_at(const frnn_totals *totals, size_t panel, size_t row)
{
    return totals->at + panel * totals->panel_stride + row * totals->row_stride;
}

static inline size_t tile_count(size_t rows, size_t nv) { return ((uint32_t)rows + max_rows[nv] - 1) / max_rows[nv]; }

/* Tiles of nearly equal height beat full tiles and a thin rest. */
static void run_group(size_t nv, const operand *x, size_t begin, uint32_t rows, const float *w, const float *w_next, bool far, sums s)
{
    const uint32_t count = (uint32_t)tile_count(rows, nv), low = rows / count, higher = rows % count; /* the first ones have a row more */
    for (size_t done = 0; done < x->k; done += FRNN_SUM_BLOCK) {
        const size_t block = x->k - done < FRNN_SUM_BLOCK ? x->k - done : FRNN_SUM_BLOCK;
        const float *a = x->a + begin * x->a_stride + done, *block_next = done + block < x->k ? w + (done + block) * nv * VLEN : w_next;
        ahead next = {(const char *)(block_next ? block_next : w),
                      block_next && (count > 1 || far) ? nv * VLEN * sizeof(float) / count : 0};
        sums part = s;
        for (uint32_t t = 0; t < count; t++) {
            const size_t height = low + (t < higher);
            tiles[nv][height](a, x->a_stride, w + done * nv * VLEN, block, next, part);
            a += height * x->a_stride;
            part.from += height * s.from_stride;
            part.to += height * s.to_stride;
            next.at += next.step * block;
        }
        s.from = s.to;
        s.from_stride = s.to_stride;
    }
}

/* A matrix is walked backwards where the first panels are those that the last walk left in the cache; ops[w] serves
 * panels of w vectors a gate, ops[0] the half panel. */

/* Neighbours of one width go together, and a half panel with the full one before it. */
static inline bool go_together(const frnn_panels *matrix, size_t first)
{
    const size_t width = frnn_panel_width(matrix, first + 1);
    return width == 0 || width == frnn_panel_width(matrix, first);
}

/* One row through the panels [begin, end). */
static void walk_row(const void *args, const frnn_panels *matrix, size_t begin, size_t end, bool backwards, const panel_ops *ops)
{
    for (size_t left = end - begin; left > 0;) {
        const size_t p = backwards ? begin + left - 1 : end - left;
        const size_t first = backwards ? p - 1 : p; /* of two */
        if (left > 1 && go_together(matrix, first)) {
            ops[frnn_panel_width(matrix, first + 1)].two(args, first);
            left -= 2;
        } else {
            ops[frnn_panel_width(matrix, p)].one(args, p);
            left--;
        }
    }
}

/* Many rows.  Weights that no cache holds come from afar only once for all rows: while the tiles of one block run, they
 * fetch the next. */
static void walk_rows(const void *args, const operand *x, size_t begin, size_t end, bool backwards, const panel_ops *ops)
{
    const frnn_panels *matrix = x->matrix;
    /* With few rows the processor itself fetches fast enough. */
    const bool far = x->rows > 4 && panel_floats(matrix) * (end - begin) * sizeof(float) > CACHE_BYTES;
    vf total[GROUP_ROWS * FRNN_MAX_WIDTH];
    for (size_t left = end - begin; left > 0; left--) {
        const size_t p = backwards ? begin + left - 1 : end - left;
        const panel_ops *op = &ops[frnn_panel_width(matrix, p)];
        const float *w = panel_weights(matrix, p);
        const float *w_next = left > 1 ? panel_weights(matrix, backwards ? p - 1 : p + 1) : NULL;
        for (size_t row = 0; row < x->rows; row += GROUP_ROWS) {
            const size_t group = x->rows - row < GROUP_ROWS ? x->rows - row : GROUP_ROWS;
            sums s = {(float *)total, (float *)total, op->nv * VLEN, op->nv * VLEN};
            if (x->from.at && x->k > 0) {
                s.from = totals_at(&x->from, p, row);
                s.from_stride = x->from.row_stride;
            } else
                op->start(args, row, group, p, total);
            if (x->to.at && x->k > 0) {
                s.to = totals_at(&x->to, p, row);
                s.to_stride = x->to.row_stride;
            }
            run_group(op->nv, x, row, (uint32_t)group, w, w_next, far, s);
            if (!x->to.at || x->k == 0) op->finish(args, row, group, p, total);
        }
    }
}

/* The functions of a kernel for panels of `width` vectors of `gates` gates, from two inline ones, start and finish, for
 * the rows [row, row + rows) of a panel; totals are laid as [row][gate][vector].  `before`: width of the panel before, which
 * two() takes too. */
#define PANEL_OPS(name, args_type, operand_of, gates, before, width, start, finish)                             \
    static void name##_rows_start(const void *args, size_t row, size_t rows, size_t panel, vf *total)           \
    {                                                                                                           \
        start((const args_type *)args, row, rows, panel, width, total);                                         \
    }                                                                                                           \
    static void name##_rows_finish(const void *args, size_t row, size_t rows, size_t panel, vf *total)          \
    {                                                                                                           \
        finish((const args_type *)args, row, rows, panel, width, total);                                        \
    }                                                                                                           \
    static void name##_one(const void *args, size_t panel)                                                      \
    {                                                                                                           \
        const operand x = operand_of((const args_type *)args);                                                  \
        const int nv = ROW_VECTORS(gates, width);                                                               \
        vf total[FRNN_MAX_WIDTH];                                                                               \
        start((const args_type *)args, 0, 1, panel, width, total);                                              \
        accumulate_row(nv, 0, x.a, panel_weights(x.matrix, panel), 0, x.k, total);                              \
        finish((const args_type *)args, 0, 1, panel, width, total);                                             \
    }                                                                                                           \
    static void name##_two(const void *args, size_t panel)                                                      \
    {                                                                                                           \
        const operand x = operand_of((const args_type *)args);                                                  \
        const int first = ROW_VECTORS(gates, before), second = ROW_VECTORS(gates, width);                       \
        vf total[2 * FRNN_MAX_WIDTH];                                                                           \
        start((const args_type *)args, 0, 1, panel, before, total);                                             \
        start((const args_type *)args, 0, 1, panel + 1, width, total + first);                                  \
        accumulate_row(first, second, x.a, panel_weights(x.matrix, panel), panel_floats(x.matrix), x.k, total); \
        finish((const args_type *)args, 0, 1, panel, before, total);                                            \
        finish((const args_type *)args, 0, 1, panel + 1, width, total + first);                                 \
    }
#define PANEL_OPS_OF(name, nv) {nv, name##_rows_start, name##_rows_finish, name##_one, name##_two}

/* ---- The product by itself ---- */

static inline operand product_operand(const frnn_product_args *s)
{
    const frnn_totals bias = {s->panels->bias, frnn_panel_row(s->panels), 0};
    return (operand){s->panels, s->a, s->a_stride, s->rows, s->panels->k, bias, s->out};
}

INLINE void product_start(const frnn_product_args *s, size_t row, size_t rows, size_t panel, const int nv, vf *total)
{
    (void)row;
    for (size_t r = 0; r < rows; r++)
        UNROLL_FOR (int j = 0; j < nv; j++)
            total[r * (size_t)nv + (size_t)j] = v_load(s->panels->bias + panel * frnn_panel_row(s->panels) + (size_t)j * VLEN);
}

INLINE void product_finish(const frnn_product_args *s, size_t row, size_t rows, size_t panel, const int nv, vf *total)
{
    for (size_t r = 0; r < rows; r++)
        UNROLL_FOR (int j = 0; j < nv; j++)
            v_store(totals_at(&s->out, panel, row + r) + (size_t)j * VLEN, total[r * (size_t)nv + (size_t)j]);
}

#define PRODUCT_OPS(name, before, nv) PANEL_OPS(name, frnn_product_args, product_operand, 1, before, nv, product_start, product_finish)
PRODUCT_OPS(product_1, 1, 1)
PRODUCT_OPS(product_2, 2, 2)
PRODUCT_OPS(product_3, 3, 3)
PRODUCT_OPS(product_4, 4, 4)
#if VLEN == 16
PRODUCT_OPS(product_half_2, 4, 1)
PRODUCT_OPS(product_half_3, 3, 2)
PRODUCT_OPS(product_half_4, 4, 2)
#endif

static void product(const frnn_product_args *s)
{
    static const panel_ops by_vectors[] = {PANEL_OPS_OF(product_1, 1), PANEL_OPS_OF(product_2, 2), PANEL_OPS_OF(product_3, 3),
                                           PANEL_OPS_OF(product_4, 4)};
    /* By vectors of all gates, not by width. */
    panel_ops ops[FRNN_MAX_WIDTH + 1];
    for (size_t width = 1; width <= s->panels->width; width++) ops[width] = by_vectors[s->panels->gates * width - 1];
#if VLEN == 16
    static const panel_ops halves[] = {PANEL_OPS_OF(product_half_2, 1), PANEL_OPS_OF(product_half_3, 2), PANEL_OPS_OF(product_half_4, 2)};
    if (s->panels->half) ops[0] = halves[s->panels->gates - 2];
#endif
    if (s->rows == 1)
        walk_row(s, s->panels, s->panel_begin, s->panel_end, false, ops);
    else {
        const operand x = product_operand(s);
        walk_rows(s, &x, s->panel_begin, s->panel_end, false, ops);
    }
}
